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
    const name = svg("text", { x: width, y: y(value) + (below ? 15 : -8), "text-anchor": "end" }, which ? "same class" : "all pairs");
    target.append(name);
    for (const [k, value] of points) {
      const chosen = k === now ? " now" : "";
      target.append(svg("circle", { class: `${chosen}${dashed}`, cx: x(k), cy: y(value), r: chosen ? 4.5 : 2.5 }));
    }
  });
}
