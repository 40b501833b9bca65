"use strict";
const KINDS = { visual: "rectangle", textual: "ellipse", cross_modal: "diamond", mixed: "triangle" };
const LABELLED = 24;

for (const section of document.querySelectorAll(".graph-section")) {
  const form = section.querySelector("form"), count = section.querySelector(".count");
  const hovered = section.querySelector(".hovered");
  const data = JSON.parse(section.querySelector("script[type='application/json']").textContent);
  const named = new Set([...data.nodes].sort((a, b) => b.size - a.size || a.id - b.id).slice(0, LABELLED).map((n) => n.id));

  const nodes = data.nodes.map(({ x, y, ...node }) => ({
    group: "nodes", position: { x, y },
    data: { ...node, id: `n${node.id}`, feature: node.id, name: named.has(node.id) ? node.label || `${node.id}` : "" },
  }));
  const edges = data.edges.map((edge, index) => ({
    group: "edges",
    data: { ...edge, id: `e${index}`, source: `n${edge.source}`, target: `n${edge.target}`, share: edge.strength / data.peak },
  }));

  const style = () => {
    const colours = getComputedStyle(document.documentElement);
    const colour = (name) => colours.getPropertyValue(`--${name}`).trim();
    return [
      { selector: "node", style: {
        width: (node) => 8 + 16 * node.data("size"), height: (node) => 8 + 16 * node.data("size"),
        "border-width": 1, "border-color": colour("raised"), label: "data(name)", "font-size": 11,
        color: colour("ink"), "text-outline-color": colour("raised"), "text-outline-width": 2, "text-valign": "top",
        "text-max-width": 140, "text-wrap": "ellipsis" } },
      ...Object.entries(KINDS).map(([kind, shape]) => ({
        selector: `node[class = "${kind}"]`, style: { "background-color": colour(kind), shape } })),
      { selector: "edge", style: {
        width: (edge) => 0.6 + 2.4 * edge.data("share"), opacity: (edge) => 0.15 + 0.6 * edge.data("share"),
        "line-color": colour("soft"), "curve-style": "haystack" } },
      { selector: ".far", style: { opacity: 0.08 } },
      { selector: "edge.near", style: { "line-color": colour("accent"), opacity: 0.9 } },
      { selector: ".hidden", style: { display: "none" } },
    ];
  };

  const graph = cytoscape({
    container: section.querySelector(".canvas"), elements: [...nodes, ...edges], layout: { name: "preset" },
    style: style(), hideEdgesOnViewport: edges.length > 2000, textureOnViewport: true, minZoom: 0.2, maxZoom: 8,
    boxSelectionEnabled: false, autoungrabify: true,
  });
  graph.fit(undefined, 20);
  section.graph = graph;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => graph.style(style()));

  const update = () => {
    const classes = new Set([...form.querySelectorAll("input[name=class]:checked")].map((box) => box.value));
    const least = Number(form.strength.value), most = Number(form.q.value);
    form.strength.nextElementSibling.textContent = least.toPrecision(2);
    form.q.nextElementSibling.textContent = most.toFixed(2);
    let drawn = 0;
    graph.batch(() => {
      graph.nodes().forEach((node) => { node.toggleClass("hidden", !classes.has(node.data("class"))); });
      graph.edges().forEach((edge) => {
        const ends = edge.source().hasClass("hidden") || edge.target().hasClass("hidden");
        const visible = !ends && edge.data("strength") >= least && edge.data("q") <= most;
        edge.toggleClass("hidden", !visible);
        drawn += visible;
      });
    });
    count.textContent = `${drawn} of ${edges.length} interactions`;
  };

  graph.on("mouseover", "node", ({ target }) => {
    const near = target.closedNeighborhood();
    graph.batch(() => { graph.elements().not(near).addClass("far"); near.addClass("near"); });
    const visible = target.connectedEdges().filter((edge) => !edge.hasClass("hidden"));
    hovered.textContent = `${target.data("feature")} · ${target.data("class").replace("_", "-")}` +
      `${target.data("label") ? ` · ${target.data("label")}` : ""} · ${visible.length} interactions`;
  });
  graph.on("mouseout", "node", () => {
    graph.batch(() => graph.elements().removeClass("far near"));
    hovered.textContent = "\u00a0";
  });
  graph.on("tap", "node", ({ target }) => { if (target.data("link")) location.href = target.data("link"); });
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
