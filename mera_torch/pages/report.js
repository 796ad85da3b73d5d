"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const {layers: histograms, thresholds, first} = JSON.parse(byId("data").textContent);
  const table = byId("layers"), body = table.tBodies[0], headers = [...table.tHead.rows[0].cells];
  const inOrder = (selector) => [...document.querySelectorAll(selector)].sort((a, b) => a.dataset.layer - b.dataset.layer);
  const rows = [...body.rows], nodes = inOrder("#network .node"), hits = inOrder("#plot .hit"), bars = inOrder("#plot .added");
  const edges = [...document.querySelectorAll("#network .edge")];
  const SVG = byId("plot").namespaceURI;
  let chosen = -1;

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }
  function shape(tag, attributes) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  // ---- one choice for table, graph and plot ----

  function choose(layer, from) {
    if (!(layer in rows)) return;
    if (chosen in rows) mark(chosen, false);
    for (const edge of edges) edge.classList.toggle("near", edge.dataset.from == layer || edge.dataset.to == layer);
    chosen = layer;
    mark(layer, true);
    if (from !== "table") revealIn(rows[layer], table.parentElement);
    if (from !== "graph") centre(layer);
    describe(layer);
  }
  function mark(layer, on) {
    rows[layer].setAttribute("aria-selected", on);
    rows[layer].tabIndex = on ? 0 : -1;
    for (const shown of [nodes[layer], hits[layer]]) shown.classList.toggle("selected", on);
  }
  function revealIn(row, pane) {  // scrolls the pane alone, never the page
    const head = table.tHead.offsetHeight, top = row.offsetTop - head, bottom = row.offsetTop + row.offsetHeight;
    if (top < pane.scrollTop) pane.scrollTop = top;
    else if (bottom > pane.scrollTop + pane.clientHeight) pane.scrollTop = bottom - pane.clientHeight;
  }
  const shownRows = () => [...body.rows].filter((row) => !row.hidden);
  function step(by, from, order) {
    const layers = order === "table" ? shownRows().map((row) => +row.dataset.layer) : rows.map((_, layer) => layer).filter((layer) => !rows[layer].hidden);
    const at = layers.indexOf(chosen);
    const next = by === Infinity ? layers.length - 1 : by === -Infinity ? 0 : at < 0 ? 0 : Math.min(layers.length - 1, Math.max(0, at + by));
    choose(layers[next], from);
  }
  const STEPS = {ArrowUp: -1, ArrowDown: 1, ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity};

  // ---- detail ----

  function describe(layer) {
    const cells = [...rows[layer].cells];
    byId("chosen").textContent = cells[1].textContent.trim();
    byId("chosen-kind").textContent = histograms[layer].kind;
    byId("metrics").replaceChildren(...headers.slice(3).map((header, i) => {
      const pair = document.createElement("div");
      pair.append(element("dt", header.textContent.trim()), element("dd", cells[i + 3].textContent.trim()));
      return pair;
    }));
    const parts = histograms[layer].parts;
    byId("channel").replaceChildren(...parts.map((part, i) => element("option", part.name, {value: i})));
    byId("channel").disabled = !parts.length;
    drawChannels(histograms[layer]);
    drawHistogram();
  }

  const count = (value) => value.toLocaleString("en", {maximumFractionDigits: 0});
  const number = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4))).replace("-", "\u2212");

  function drawHistogram() {
    const svg = byId("histogram"), part = histograms[chosen].parts[byId("channel").value || 0];
    byId("axis").replaceChildren();
    if (!part) {
      svg.replaceChildren();
      byId("histogram-note").textContent = "No histogram was taken of this layer.";
      return;
    }
    const {low, high, float, int8, from, to, saturated, quantized} = part, bins = float.length, isLog = byId("log").checked;
    const scaled = (value) => (isLog ? Math.log1p(value) : value);
    const inside = float.map((value, i) => value - (i === 0 ? saturated[0] : i === bins - 1 ? saturated[1] : 0));
    const top = Math.max(...[...inside, ...int8, ...saturated].map(scaled)) || 1;
    const height = (value) => 96 * scaled(value) / top;
    const at = (value) => 1000 * (value - from) / (to - from || 1);
    const edge = (i) => at(low + i * (high - low) / bins);
    const bar = (kind, x0, x1, value, said) => {
      const made = shape("rect", {class: kind, x: x0, width: Math.max(0, x1 - x0), y: 100 - height(value), height: height(value)});
      made.append(shape("title", {}));
      made.firstChild.textContent = said;
      return made;
    };
    const gap = 0.06 * (edge(1) - edge(0)), shapes = [];
    if (quantized) {
      if (from < low) shapes.push(shape("rect", {class: "out", x: 0, width: at(low), y: 0, height: 100}));
      if (to > high) shapes.push(shape("rect", {class: "out", x: at(high), width: 1000 - at(high), y: 0, height: 100}));
      if (saturated[0]) shapes.push(bar("float saturated", 0, at(low), saturated[0], `below int8: float ${count(saturated[0])}`));
      if (saturated[1]) shapes.push(bar("float saturated", at(high), 1000, saturated[1], `above int8: float ${count(saturated[1])}`));
    }
    inside.forEach((value, i) => shapes.push(bar("float bin", edge(i) + gap, edge(i + 1) - gap, value,
      `${number(low + i * (high - low) / bins)} to ${number(low + (i + 1) * (high - low) / bins)}: float ${count(value)}, int8 ${count(int8[i])}`)));
    shapes.push(shape("path", {class: "int8", d: `M${edge(0)} 100` + int8.map((value, i) => `V${100 - height(value)}H${edge(i + 1)}`).join("") + "V100"}));
    if (quantized) for (const end of [low, high]) shapes.push(shape("line", {class: "limit", x1: at(end), x2: at(end), y1: 0, y2: 100}));
    svg.replaceChildren(...shapes);
    byId("axis").append(...[from, (from + to) / 2, to].map((value) => element("span", number(value))));
    byId("histogram-note").textContent = part.note;
    for (const mark of byId("channels").children) mark.classList.toggle("selected", +mark.dataset.channel === part.channel);
  }
  function drawChannels({parts, channels}) {
    const kept = new Map(parts.map((part, i) => [part.channel, i]));
    byId("channels").setAttribute("viewBox", `0 0 ${channels.length || 1} 10`);
    byId("channels").replaceChildren(...channels.map((ratio, i) => {
      const made = shape("rect", {class: ratio === null ? "en" : `e${thresholds.filter((threshold) => ratio <= threshold).length}`, x: i, width: 1, height: 10, "data-channel": i});
      made.append(shape("title", {}));
      made.firstChild.textContent = `channel ${i}: ` + (ratio === null ? "exact" : `SQNR ${ratio} dB`) + (kept.has(i) ? "" : " (no histogram kept)");
      if (kept.has(i)) made.classList.add("kept");
      return made;
    }));
    byId("channels-line").hidden = !channels.length;
  }
  byId("channels").addEventListener("click", (event) => {
    const i = histograms[chosen].parts.findIndex((part) => part.channel === +event.target.dataset.channel);
    if (i >= 0) byId("channel").value = i;
    drawHistogram();
  });
  byId("channel").addEventListener("change", drawHistogram);
  byId("log").addEventListener("change", drawHistogram);

  // ---- table: sort and filter ----

  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", (event) => {
    const {numeric, worst} = event.currentTarget.dataset, was = header.getAttribute("aria-sort");
    const order = was === "none" ? worst : was === "ascending" ? "descending" : "ascending";
    for (const other of headers) other.setAttribute("aria-sort", other === header ? order : "none");
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => numeric === "1" ? (row.cells[column].dataset.sort === undefined ? NaN : +row.cells[column].dataset.sort) : row.cells[column].textContent;
    const compare = (a, b) => numeric === "1" ? (Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : sign * ((a > b) - (a < b))) : sign * a.localeCompare(b, "en", {numeric: true});
    const keyed = rows.map((row) => [key(row), row]);
    body.append(...keyed.sort((a, b) => compare(a[0], b[0])).map((pair) => pair[1]));
  }));

  function filter() {
    const wanted = byId("search").value.trim().toLowerCase().split(/\s+/), operator = byId("operator").value, least = +byId("least").value;
    let shown = 0;
    rows.forEach((row, layer) => {
      const text = (row.textContent + " " + histograms[layer].kind).toLowerCase();
      const fits = wanted.every((word) => text.includes(word)) && (!operator || row.dataset.op === operator) && +row.dataset.step >= least;
      row.hidden = !fits;
      shown += fits;
      for (const drawn of [nodes[layer], bars[layer]]) drawn.classList.toggle("dim", !fits);
    });
    byId("count").textContent = `${shown} of ${rows.length}`;
  }
  byId("search").addEventListener("input", filter);
  byId("operator").addEventListener("change", filter);
  byId("least").addEventListener("change", filter);
  body.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS) || event.key === "ArrowLeft" || event.key === "ArrowRight") return;
    event.preventDefault();
    step(STEPS[event.key], "keys", "table");
    rows[chosen].focus({preventScroll: true});
  });
  byId("plot").addEventListener("keydown", (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    step(STEPS[event.key], "keys");
  });

  // ---- tooltips and clicks ----

  const tip = byId("tip"), layerOf = (target) => target.closest?.("[data-layer]");
  function showTip(event) {
    const held = layerOf(event.target), isRow = held && held.tagName === "TR";
    for (const shown of document.querySelectorAll(".hover")) shown.classList.remove("hover");
    tip.hidden = !held || isRow;
    if (!held) return;
    const layer = held.dataset.layer;
    for (const other of [rows[layer], nodes[layer], hits[layer]]) other.classList.add("hover");
    if (isRow) return;
    const cells = [...rows[layer].cells], lines = document.createElement("table");
    headers.forEach((header, i) => {
      if (header.dataset.brief !== "1" || !cells[i].textContent.trim()) return;
      const line = lines.insertRow();
      line.append(element("td", header.textContent.trim()), element("td", cells[i].textContent.trim()));
    });
    tip.replaceChildren(element("b", cells[1].textContent.trim()), lines);
    const x = event.clientX + 16, y = event.clientY + 16;
    tip.style.left = Math.max(4, Math.min(x, innerWidth - tip.offsetWidth - 4)) + "px";
    tip.style.top = (y + tip.offsetHeight > innerHeight ? Math.max(4, event.clientY - tip.offsetHeight - 12) : y) + "px";
  }
  document.addEventListener("pointermove", showTip);
  document.addEventListener("pointerleave", () => { tip.hidden = true; });
  document.addEventListener("click", (event) => {
    const picked = event.target.closest?.("[data-pick]"), held = layerOf(event.target);
    if (picked) {
      choose(+picked.dataset.pick, "pick");
      document.querySelector(".workspace").scrollIntoView({block: "start"});
    } else if (held && !(dragged && held.closest("#graph"))) choose(+held.dataset.layer, held.closest("#graph") ? "graph" : held.closest("#plot") ? "plot" : "table");
  });
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement, set = root.style.colorScheme;
    const isDark = set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = isDark ? "light" : "dark";
  });

  // ---- graph: zoom and pan ----

  const graph = byId("graph"), mini = byId("mini"), width = +graph.dataset.width, height = +graph.dataset.height;
  const camera = {x: 0, y: 0, scale: 1}, READABLE = 0.55;
  const pane = () => ({width: graph.clientWidth || 1, height: graph.clientHeight || 1});
  const MARGIN = 12;
  const fitted = () => Math.min(1.2, Math.max(1, pane().width - 2 * MARGIN) / width, Math.max(1, pane().height - 2 * MARGIN) / height);
  function look() {
    const {width: w, height: h} = pane(), k = camera.scale;
    const fits = (size, room) => size * k + 2 * MARGIN <= room + 0.01;
    const held = (value, size, room) => fits(size, room) ? (room - size * k) / 2 : Math.min(MARGIN, Math.max(room - MARGIN - size * k, value));
    camera.x = held(camera.x, width, w);
    camera.y = held(camera.y, height, h);
    byId("camera").setAttribute("transform", `translate(${camera.x} ${camera.y}) scale(${k})`);
    mini.style.display = fitted() >= READABLE ? "none" : "";
    const view = {x: -camera.x / k, y: -camera.y / k, width: w / k, height: h / k};
    for (const [name, value] of Object.entries(view)) byId("view").setAttribute(name, value);
  }
  function zoom(factor, x = pane().width / 2, y = pane().height / 2) {
    const scale = Math.min(3, Math.max(Math.min(fitted(), 1), camera.scale * factor)), ratio = scale / camera.scale;
    Object.assign(camera, {x: x - (x - camera.x) * ratio, y: y - (y - camera.y) * ratio, scale});
    look();
  }
  function centre(layer) {
    const {x, y, width: w, height: h} = nodes[layer].getBBox(), at = nodes[layer].transform.baseVal[0].matrix, room = pane();
    camera.x = room.width / 2 - camera.scale * (at.e + x + w / 2);
    camera.y = room.height / 2 - camera.scale * (at.f + y + h / 2);
    look();
  }
  function fit() {
    Object.assign(camera, {x: 0, y: 0, scale: fitted()});
    look();
  }
  function start() {  // the whole network if that can be read, else its upper end
    mini.parentElement.classList.toggle("wide", width / height > pane().width / pane().height);
    const scale = fitted() >= READABLE ? fitted() : Math.min(1, Math.max(READABLE, (pane().width - 24) / width));
    Object.assign(camera, {x: 0, y: 1e9, scale});
    look();
    if (chosen in rows) centre(chosen);
  }
  graph.addEventListener("wheel", (event) => {
    const box = graph.getBoundingClientRect(), before = {...camera};
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY * 0.004), event.clientX - box.left, event.clientY - box.top);
    else {
      camera.x -= event.shiftKey ? event.deltaY : event.deltaX;
      camera.y -= event.shiftKey ? 0 : event.deltaY;
      look();
    }
    if (event.ctrlKey || camera.x !== before.x || camera.y !== before.y) event.preventDefault();  // at its end the page scrolls
  }, {passive: false});
  const fingers = new Map();
  let dragged = false;
  graph.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    dragged = false;
  });
  addEventListener("pointermove", (event) => {
    const was = fingers.get(event.pointerId);
    if (!was) return;
    const others = [...fingers.values()].filter((finger) => finger.pointerId !== event.pointerId), box = graph.getBoundingClientRect();
    const dx = event.clientX - was.clientX, dy = event.clientY - was.clientY;
    if (!dragged && !others.length && Math.hypot(dx, dy) < 4) return;
    dragged = true;
    fingers.set(event.pointerId, event);
    if (others.length) {
      const [other] = others, apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
      zoom(apart(event) / (apart(was) || 1), (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
    } else {
      camera.x += dx;
      camera.y += dy;
      look();
    }
  });
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, (event) => fingers.delete(event.pointerId));
  graph.addEventListener("keydown", (event) => {
    if (event.key in STEPS) step(STEPS[event.key], "keys");
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  byId("zoom-in").addEventListener("click", () => zoom(1.25));
  byId("zoom-out").addEventListener("click", () => zoom(0.8));
  byId("fit").addEventListener("click", fit);
  mini.addEventListener("pointerdown", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(mini.getScreenCTM().inverse());
    Object.assign(camera, {x: pane().width / 2 - camera.scale * at.x, y: pane().height / 2 - camera.scale * at.y});
    look();
  });
  new ResizeObserver(look).observe(graph);
  addEventListener("beforeprint", () => {  // a view box, so that the drawing has whatever size the sheet gives it
    graph.setAttribute("viewBox", `-4 -4 ${width + 8} ${height + 8}`);
    byId("camera").removeAttribute("transform");
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  });
  addEventListener("afterprint", () => {
    graph.removeAttribute("viewBox");
    look();
  });

  start();
  choose(first, "start");
})();
