"use strict";
for (const section of document.querySelectorAll(".graph-section")) {
  const form = section.querySelector("form"), count = section.querySelector(".count");
  const nodes = [...section.querySelectorAll(".node")], edges = [...section.querySelectorAll(".edge")];
  const byId = new Map(nodes.map((node) => [node.dataset.id, node]));

  const update = () => {
    const classes = new Set([...form.querySelectorAll("input[name=class]:checked")].map((box) => box.value));
    const least = Number(form.strength.value), most = Number(form.q.value);
    form.strength.nextElementSibling.textContent = least.toPrecision(2);
    form.q.nextElementSibling.textContent = most.toFixed(2);
    for (const node of nodes) node.classList.toggle("hidden", !classes.has(node.dataset.class));
    let drawn = 0;
    for (const edge of edges) {
      const ends = [byId.get(edge.dataset.source), byId.get(edge.dataset.target)];
      const visible = ends.every((node) => !node.classList.contains("hidden")) &&
        Number(edge.dataset.strength) >= least && Number(edge.dataset.q) <= most;
      edge.classList.toggle("hidden", !visible);
      drawn += visible;
    }
    count.textContent = `${drawn} of ${edges.length} interactions`;
  };

  for (const node of nodes) {
    const near = edges.filter((edge) => edge.dataset.source === node.dataset.id || edge.dataset.target === node.dataset.id);
    const around = near.flatMap((edge) => [byId.get(edge.dataset.source), byId.get(edge.dataset.target)]);
    const focus = (on) => {
      section.classList.toggle("focused", on);
      for (const item of [node, ...near, ...around]) item.classList.toggle("near", on);
    };
    node.addEventListener("mouseenter", () => focus(true));
    node.addEventListener("mouseleave", () => focus(false));
  }
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
