"use strict";
(() => {
  const ROW = 46; // pixels; the style sheet fixes the same height
  const SPARE = 8; // rows rendered beyond each edge of the window
  const { rows, pictures } = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const list = find("list"), body = find("rows"), labels = {
    visual: "visual", textual: "textual", cross_modal: "cross-modal", mixed: "mixed", dead: "dead" };
  let shown = rows, sort = { key: "auroc", sign: -1 };

  for (const layer of [...new Set(rows.map((row) => row.layer))].sort((a, b) => a - b)) {
    find("layer").add(new Option(layer, layer));
  }

  find("paged").checked = rows.some((row) => row.page);

  const element = (name, options = {}, children = []) => {
    const node = Object.assign(document.createElement(name), options);
    node.append(...children);
    return node;
  };
  const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
  const density = (value) => (value === null ? "–" : value === 0 ? "0" : (100 * value).toPrecision(2) + "%");

  function interval(row) {
    if (row.product === null) return "–";
    const bar = element("span", { className: "mini", title: `[${number(row.low)}, ${number(row.high)}]` });
    const range = element("i"), point = element("b");
    range.style.left = 100 * (row.low ?? row.product) + "%";
    range.style.width = 100 * ((row.high ?? row.product) - (row.low ?? row.product)) + "%";
    point.style.left = 100 * row.product + "%";
    bar.append(range, point);
    return element("span", {}, [bar, number(row.product)]);
  }

  function render(row, index) {
    const name = `${row.layer} · ${row.id}`;
    const link = row.page ? element("a", { href: "features/" + row.page, textContent: name }) : name;
    const thumbs = row.thumbs.map((i) => element("img", { src: pictures[i], alt: "", width: 36, height: 36 }));
    const badge = element("span", { className: "badge" }, [element("i", { className: "mark " + row.class }), labels[row.class]]);
    badge.style.setProperty("--c", `var(--${row.class})`);
    const cells = [[link], thumbs, [badge], [interval(row)], [row.concept || "–"], [number(row.auroc)], [number(row.iou)],
      [number(row.mono)], [density(row.density)], [number(row.effect, 3)]];
    const line = element("tr", {}, cells.map((content) => element("td", {}, content)));
    line.setAttribute("aria-rowindex", index + 1);
    return line;
  }

  const spacer = (height) => {
    const line = element("tr", { className: "spacer" }, [element("td", { colSpan: 10 })]);
    line.style.height = height + "px";
    line.setAttribute("aria-hidden", "true");
    return line;
  };

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    body.replaceChildren(spacer(first * ROW), ...shown.slice(first, last).map((row, i) => render(row, first + i)),
      spacer((shown.length - last) * ROW));
  }

  function compare(a, b) {
    const x = a[sort.key], y = b[sort.key];
    const empty = (value) => value === null || value === "";
    if (empty(x) || empty(y)) return empty(x) - empty(y); // what is not known comes last either way
    return sort.sign * (typeof x === "string" ? x.localeCompare(y) : x - y) || a.layer - b.layer || a.id - b.id;
  }

  function update() {
    const classes = new Set([...document.querySelectorAll("input[name=class]:checked")].map((box) => box.value));
    const words = find("search").value.trim().toLowerCase(), layer = find("layer").value;
    const least = Number(find("auroc").value), paged = find("paged").checked;
    find("auroc").nextElementSibling.textContent = least.toFixed(2);
    shown = rows.filter((row) => classes.has(row.class) && (!layer || row.layer === Number(layer)) &&
      (!paged || row.page) && (least === 0 || (row.auroc ?? 0) >= least) &&
      (!words || row.concept.toLowerCase().includes(words) || String(row.id) === words)).sort(compare);
    find("count").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} features`;
    for (const head of document.querySelectorAll("th[data-sort]")) {
      head.ariaSort = head.dataset.sort === sort.key ? (sort.sign < 0 ? "descending" : "ascending") : "none";
    }
    list.scrollTop = 0;
    draw();
  }

  for (const head of document.querySelectorAll("th[data-sort]")) {
    head.addEventListener("click", () => {
      const text = ["id", "class", "concept"].includes(head.dataset.sort);
      sort = { key: head.dataset.sort, sign: sort.key === head.dataset.sort ? -sort.sign : text ? 1 : -1 };
      update();
    });
  }
  let waiting = false;
  list.addEventListener("scroll", () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  }, { passive: true });
  find("filters").addEventListener("input", update);
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("resize", draw);
  update();
})();
