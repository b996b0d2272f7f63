// Colours, outlines and the curve over layers: from numbers to pictures, without any state.

const ANCHORS = {
  viridis: "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
  magma: "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf",
  cividis: "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
};

// 256 colours as [red, green, blue, 255], evenly between a scale's ten anchors.
function colourTable(name) {
  const anchors = ANCHORS[name].split(" ").map((code) => [0, 2, 4].map((at) => parseInt(code.slice(at, at + 2), 16)));
  const table = new Uint8ClampedArray(1024).fill(255);
  for (let step = 0; step < 256; step++) {
    const at = step / 255 * (anchors.length - 1), low = Math.min(Math.floor(at), anchors.length - 2);
    for (let c = 0; c < 3; c++) table[4 * step + c] = anchors[low][c] + (at - low) * (anchors[low + 1][c] - anchors[low][c]);
  }
  return table;
}

// Of the line around patches at the threshold: stands out from every colour of the scale.
const CONTRAST = { viridis: "#ff4f79", magma: "#2fe6f2", cividis: "#ff4f79" };

function gradientOf(name) {
  return `linear-gradient(90deg, ${ANCHORS[name].split(" ").map((code) => `#${code}`).join(", ")})`;
}

// One pixel a patch; the style sheet enlarges it.
function paint(canvas, row, grid, table) {
  if (canvas.width !== grid.cols || canvas.height !== grid.rows) [canvas.width, canvas.height] = [grid.cols, grid.rows];
  const context = canvas.getContext("2d"), image = context.createImageData(grid.cols, grid.rows);
  for (let patch = 0; patch < row.length; patch++) {
    const from = 4 * Math.round(255 * row[patch]);
    image.data.set(table.subarray(from, from + 4), 4 * patch);
  }
  context.putImageData(image, 0, 0);
}

// Closed loops of grid points around the cells that are inside, each as [x, y, x, y, ...] in unit steps.
function loopsAround(rows, cols, inside) {
  const after = new Map(), wide = cols + 1;
  const edge = (from, to) => { const ends = after.get(from); if (ends) ends.push(to); else after.set(from, [to]); };
  const at = (r, c) => r >= 0 && c >= 0 && r < rows && c < cols && inside(r * cols + c);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      if (!inside(r * cols + c)) continue;
      const corner = r * wide + c;
      if (!at(r - 1, c)) edge(corner, corner + 1);
      if (!at(r, c + 1)) edge(corner + 1, corner + 1 + wide);
      if (!at(r + 1, c)) edge(corner + 1 + wide, corner + wide);
      if (!at(r, c - 1)) edge(corner + wide, corner);
    }
  }
  const loops = [];
  for (const start of after.keys()) {
    while (after.get(start).length) {
      const points = [];
      let now = start;
      do {
        points.push(now % wide, Math.floor(now / wide));
        now = after.get(now).pop();
      } while (now !== start);
      loops.push(points);
    }
  }
  return loops;
}

// Along the cells' edges, for patches: corners only.
function squarePath(loops) {
  return loops.map((p) => {
    const n = p.length;
    let d = "";
    for (let i = 0; i < n; i += 2) {
      const straight = (p[(i - 2 + n) % n] === p[i] && p[i] === p[(i + 2) % n])
        || (p[(i - 1 + n) % n] === p[i + 1] && p[i + 1] === p[(i + 3) % n]);
      if (!straight) d += `${d ? "L" : "M"}${p[i]} ${p[i + 1]}`;
    }
    return `${d}Z`;
  }).join("");
}

// For masks: each point is the mean of five along the loop, so that slanted borders are no staircases.
function smoothPath(loops) {
  return loops.map((p) => {
    const n = p.length / 2, reach = n > 16 ? 2 : 0;
    let d = "";
    for (let i = 0; i < n; i++) {
      let x = 0, y = 0;
      for (let k = i - reach + n; k <= i + reach + n; k++) [x, y] = [x + p[2 * (k % n)], y + p[2 * (k % n) + 1]];
      d += `${i ? "L" : "M"}${+(x / (2 * reach + 1)).toFixed(1)} ${+(y / (2 * reach + 1)).toFixed(1)}`;
    }
    return `${d}Z`;
  }).join("");
}

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// How well the probes tell pairs, layer by layer, above the slider whose thumb stands at the same places.
function drawCurve(target, layers, now) {
  const names = ["auroc", "twins_auroc"];
  const known = names.map((name) => layers.map((layer) => layer.metrics[name]));
  const values = known.flat().filter((value) => value !== undefined);
  const shown = values.length > 1 && layers.length > 1;
  target.toggleAttribute("hidden", !shown);
  if (!shown) return;
  const width = target.clientWidth || 310, height = 104, top = 16, bottom = 98;
  const low = Math.min(0.35, Math.min(...values) - 0.05);
  const x = (k) => 8 + (width - 16) * k / (layers.length - 1);
  const y = (value) => bottom - (bottom - top) * (value - low) / (1 - low);
  target.setAttribute("viewBox", `0 0 ${width} ${height}`);
  target.replaceChildren(
    svg("path", { class: "grid", d: `M0 ${y(1)}H${width}M0 ${y(0.5)}H${width}` }),
    svg("text", { x: 0, y: y(1) - 4 }, "AUROC 1"),
    svg("text", { x: 0, y: y(0.5) + 12 }, "0.5: chance"),
  );
  known.forEach((series, which) => {
    const dashed = which ? " dashed" : "";
    const points = series.map((value, k) => [k, value]).filter(([, value]) => value !== undefined);
    if (!points.length) return;
    const d = points.map(([k, value], i) => `${i ? "L" : "M"}${x(k)} ${y(value)}`).join("");
    target.append(svg("path", { class: `line${dashed}`, d }));
    // The names stand above the upper and below the lower line.
    const [last, value] = points.at(-1), other = known[1 - which][last];
    const below = other !== undefined && other > value;
    const name = svg("text", { x: width, y: y(value) + (below ? 15 : -8), "text-anchor": "end" }, which ? "twins" : "all pairs");
    target.append(name);
    for (const [k, value] of points) {
      const chosen = k === now ? " now" : "";
      target.append(svg("circle", { class: `${chosen}${dashed}`, cx: x(k), cy: y(value), r: chosen ? 4.5 : 2.5 }));
    }
  });
}
