// What is shown, and everything that changes it.

const $ = (id) => document.getElementById(id);
const { images, backbones, version, start = {} } = JSON.parse($("data").textContent);
const state = { image: 0, backbone: 0, layer: 0, patch: 0, beside: "" };
let row = new Float32Array(), maps = [], table = colourTable("viridis"), pointed = null;

const grid = () => backbones[state.backbone].grids[state.image];
const layers = () => backbones[state.backbone].layers;
const whole = (value, low, high) => Math.min(high, Math.max(low, Math.round(value)));
const two = (value) => value.toFixed(2);

// --- data, read when first needed; the last few dozen maps stay ---

const read = new Map();
function affinities(backbone, image, layer) {
  const id = `pack-${backbone}-${image}-${layer}`, { rows, cols } = backbones[backbone].grids[image];
  if (!read.has(id)) {
    read.set(id, Affinities.read(id, backbones[backbone].packs[image][layer], rows * cols));
    if (read.size > 48) read.delete(read.keys().next().value);
  }
  const found = read.get(id);
  read.delete(id);
  read.set(id, found);
  return found;
}

const masks = new Map();
async function maskOf(image) {
  const { mask } = images[image];
  if (mask && !masks.has(image)) {
    const bytes = await inflate(toBytes(mask.text, mask.bytes));
    masks.set(image, { ...mask, numbers: new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2), paths: [] });
  }
  return masks.get(image);
}

function pathOf(mask, object) {
  mask.paths[object] ??= smoothPath(loopsAround(mask.rows, mask.cols, (at) => mask.numbers[at] === object + 1));
  return mask.paths[object];
}

const labelOf = (patch) => grid().labels[patch] ?? -1;
const objectWords = (object) => {
  const { objects } = images[state.image];
  if (object < 0) return objects.length ? "unlabelled" : "";
  return `${objects[object].name} (object ${objects[object].id})`;
};

// --- drawing ---

let drawing = 0;
async function draw() {
  const turn = ++drawing;
  const there = besideMap(), wanted = [{ backbone: state.backbone, layer: state.layer }, ...(there ? [there] : [])];
  const [mask, ...found] = await Promise.all([maskOf(state.image),
    ...wanted.map(({ backbone, layer }) => affinities(backbone, state.image, layer))]);
  if (turn !== drawing) return;
  // Each map with its own grid and affinities: a line on it is of these and no others.
  maps = found.map((map, k) => {
    const own = backbones[wanted[k].backbone].grids[state.image], patch = placedIn(state.patch, grid(), own);
    return { prefix: k ? "beside-" : "", grid: own, patch, row: map.of(patch) };
  });
  [{ row }] = maps;
  if (state.beside && !there) maps.push({ prefix: "beside-", grid: grid(), patch: state.patch, row: null });
  for (const map of maps) {
    if (map.row) paint($(`${map.prefix}heat`), map.row, map.grid, table);
    drawMarks(map, mask);
  }
  drawGuess();
  drawReadings();
  drawNeedle();
  writeAddress();
  $("stage").dataset.shown = [state.backbone, state.image, state.layer, state.patch].join("-");
  document.documentElement.dataset.ready = "true";
  refreshStrip();
}

function drawMarks({ prefix, grid: { rows, cols }, patch }, mask) {
  const own = labelOf(state.patch);
  $(`${prefix}marks`).setAttribute("viewBox", `0 0 ${cols} ${rows}`);
  for (const id of ["chosen", "chosen-casing"]) {
    $(prefix + id).setAttribute("x", patch % cols);
    $(prefix + id).setAttribute("y", Math.floor(patch / cols));
  }
  const twins = own >= 0 ? images[state.image].objects[own].twins : [];
  const drawn = mask && $("outlines").checked;
  const truth = drawn && own >= 0 ? pathOf(mask, own) : "", others = drawn ? twins.map((k) => pathOf(mask, k)).join("") : "";
  for (const [id, d] of [["truth", truth], ["twins", others]]) {
    $(prefix + id).setAttribute("d", d);
    $(`${prefix}${id}-casing`).setAttribute("d", d);
    $(`legend-${id}`).hidden = !d;
  }
  if (mask) $(`${prefix}objects`).setAttribute("transform", `scale(${cols / mask.cols} ${rows / mask.rows})`);
}

function drawGuess() {
  const limit = +$("threshold").value;
  let off = true;
  for (const { prefix, grid: { rows, cols }, row } of maps) {
    // Around nearly all patches a line would frame the others, those of low affinity.
    const outlined = row && 10 * row.filter((value) => value >= limit).length <= 9 * row.length;
    const d = outlined ? squarePath(loopsAround(rows, cols, (patch) => row[patch] >= limit)) : "";
    for (const id of ["guess", "guess-casing"]) $(prefix + id).setAttribute("d", d);
    off &&= !outlined;
    $(`${prefix}off`).hidden = outlined || !row || maps.length < 2;
  }
  $("legend-off").hidden = !off;
  $("threshold-value").textContent = $("legend-threshold").textContent = two(limit);
  $("limit").style.left = `${100 * limit}%`;
  const n = row.reduce((sum, value) => sum + (value >= limit), 0);
  $("legend-guess").title = `${n} of ${row.length} patches`;
}

function drawReadings() {
  const { cols } = grid(), own = labelOf(state.patch), at = [Math.floor(state.patch / cols), state.patch % cols];
  $("patch-value").textContent = `row ${at[0]} · column ${at[1]}`;
  $("patch-object").textContent = objectWords(own);
  $("patch-object").hidden = !objectWords(own);
  const sums = new Map();
  row.forEach((value, patch) => {
    if (patch === state.patch) return;
    const sum = sums.get(labelOf(patch)) ?? [0, 0];
    sums.set(labelOf(patch), [sum[0] + value, sum[1] + 1]);
  });
  const { objects } = images[state.image], twins = own >= 0 ? objects[own].twins : [];
  const rank = (object) => (object === own && own >= 0 ? 0 : twins.includes(object) ? 1 : object >= 0 ? 2 : 3);
  const entries = [...sums].map(([object, [sum, n]]) => ({ object, mean: sum / n, rank: rank(object) }));
  entries.sort((a, b) => a.rank - b.rank || b.mean - a.mean);
  $("means").replaceChildren(...entries.map(({ object, mean, rank: kind }) => {
    const name = object >= 0 ? objects[object].name : objects.length ? "unlabelled" : "all other patches";
    const item = make("li", ["own", "twin", "", ""][kind]), words = make("span", "name", name), bar = make("span", "bar");
    const note = ["this object", "same class"][kind] ?? (object >= 0 ? `object ${objects[object].id}` : "");
    if (note) words.append(" ", make("small", "", note));
    bar.append(make("i"));
    bar.firstChild.style.width = `${100 * mean}%`;
    item.append(words, bar, make("span", "value", two(mean)));
    return item;
  }));
}

function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}

function drawNeedle() {
  const shown = pointed !== null && pointed < row.length;
  $("needle").hidden = $("tip").hidden = !shown;
  $("pointed").style.visibility = shown ? "visible" : "hidden";
  if (!shown) return;
  const { rows, cols } = grid(), r = Math.floor(pointed / cols), c = pointed % cols;
  $("needle").style.left = `${100 * row[pointed]}%`;
  $("pointed").setAttribute("x", c);
  $("pointed").setAttribute("y", r);
  const value = make("b", "", two(row[pointed])), object = objectWords(labelOf(pointed));
  $("tip").replaceChildren(make("i", "", "affinity "), value, make("br"), `row ${r} · column ${c}`);
  if (object) $("tip").append(make("br"), object);
  const left = (c + 1) / cols > 0.62;
  $("tip").style.left = left ? "" : `${100 * (c + 1) / cols}%`;
  $("tip").style.right = left ? `${100 * (cols - c) / cols}%` : "";
  $("tip").style.top = `${100 * Math.min(r / rows, 0.85)}%`;
  $("tip").style.margin = "0 10px";
}

function say() {
  const { cols } = grid(), own = objectWords(labelOf(state.patch));
  $("said").textContent = `Layer ${layers()[state.layer].layer}. Row ${Math.floor(state.patch / cols)}, column `
    + `${state.patch % cols}${own ? `, ${own}` : ""}.`;
}

// The small maps, one a layer; read one after another so that clicks are never kept waiting.
let refreshing = false, stale = false;
async function refreshStrip() {
  if (layers().length < 2) return;
  stale = true;
  if (refreshing) return;
  refreshing = true;
  while (stale) {
    stale = false;
    const { backbone, image } = state;
    for (let k = 0; k < backbones[backbone].layers.length && !stale; k++) {
      const id = `pack-${backbone}-${image}-${k}`;
      if (!read.has(id)) await new Promise((resume) => setTimeout(resume));
      const found = await affinities(backbone, image, k);
      if (stale || backbone !== state.backbone || image !== state.image) break;
      paint($("strip").children[k].firstChild, found.of(state.patch), grid(), table);
    }
  }
  refreshing = false;
  $("strip").dataset.shown = $("stage").dataset.shown;
}

// --- parts that change with the image or the backbone only ---

function showImage() {
  const { picture, width, height, name, mask } = images[state.image];
  for (const prefix of ["", "beside-"]) {
    $(`${prefix}picture`).src = picture;
    $(`${prefix}picture`).alt = name;
    $(`${prefix}stage`).style.aspectRatio = `${width} / ${height}`;
  }
  $("image-name").textContent = name;
  document.querySelector(".stage-column").style.setProperty("--ratio", width / height);
  $("outline-row").hidden = !mask;
  $("twins-note").hidden = !images.some(({ objects }) => objects.some(({ twins }) => twins.length));
  [...$("thumbs").children].forEach((button, k) => button.setAttribute("aria-pressed", k === state.image));
}

function showBackbone() {
  document.querySelectorAll("#backbones input").forEach((input, k) => { input.checked = k === state.backbone; });
  $("layer").max = layers().length - 1;
  $("layer").disabled = layers().length < 2;
  $("strip-block").hidden = layers().length < 2;
  const { width, height } = images[state.image];
  $("strip").replaceChildren(...layers().map(({ layer }, k) => {
    const button = make("button"), canvas = make("canvas");
    button.type = "button";
    button.setAttribute("aria-label", `Layer ${layer}`);
    canvas.style.aspectRatio = `${width} / ${height}`;
    [canvas.width, canvas.height] = [grid().cols, grid().rows];
    button.append(canvas, make("span", "", String(layer)));
    button.addEventListener("click", () => go({ layer: k }));
    return button;
  }));
}

function showLayer() {
  const about = layers()[state.layer], { depth, objective, best, chosen_on: chosenOn } = backbones[state.backbone];
  const { metrics } = about;
  $("layer").value = state.layer;
  $("layer").setAttribute("aria-valuetext", `layer ${about.layer}`);
  $("layer-value").textContent = depth > 1 ? `${about.layer} of 0–${depth - 1}` : String(about.layer);
  [...$("strip").children].forEach((button, k) => button.setAttribute("aria-pressed", k === state.layer));
  const chosen = $("strip").children[state.layer], strip = $("strip");
  if (chosen) strip.scrollLeft = chosen.offsetLeft - strip.offsetLeft - (strip.clientWidth - chosen.clientWidth) / 2;
  drawCurve($("curve"), layers(), state.layer);
  const words = [`${about.probe.replaceAll("_", " ")} probe${about.protocol ? `, ${about.protocol} protocol` : ""}`];
  if (metrics.auroc !== undefined) {
    const twins = metrics.twins_auroc === undefined ? "" : `, ${two(metrics.twins_auroc)} against same-class distractors (dashed)`;
    const split = about.split ? ` on the ${about.split} scenes` : "";
    words.push(`AUROC ${two(metrics.auroc)} over all pairs${twins}${split}`);
  }
  if (state.layer === best && chosenOn) words.push(`The best of these layers by accuracy on the ${chosenOn} scenes`);
  if (about.synthetic && !images[state.image].objects.length) words.push("A probe fitted on synthetic scenes says little of photos");
  if (objective === "random-init") words.push("This backbone was never trained: what trained ones have to beat");
  const note = words.join(". ");
  $("probe-note").textContent = `${note[0].toUpperCase()}${note.slice(1)}.`;
}

// --- moving: every change goes through here ---

function go(change, speak = true) {
  const before = { ...state }, old = grid();
  Object.assign(state, change);
  state.image = whole(state.image, 0, images.length - 1);
  if (state.backbone !== before.backbone && change.layer === undefined) {
    const layer = backbones[before.backbone].layers[before.layer].layer;
    state.layer = nearestLayer(layer);
  }
  state.layer = whole(state.layer, 0, layers().length - 1);
  if (change.patch === undefined && (old.rows !== grid().rows || old.cols !== grid().cols)) {
    state.patch = placedIn(before.patch, old, grid());
  }
  state.patch = whole(state.patch, 0, grid().rows * grid().cols - 1);
  show(before);
  if (speak) say();
  return draw();
}

function nearestLayer(layer) {
  const distances = layers().map((entry) => Math.abs(entry.layer - layer));
  return distances.indexOf(Math.min(...distances));
}

function show(before) {
  if (state.image !== before.image) showImage();
  if (state.image !== before.image || state.backbone !== before.backbone) {
    showBackbone();
    pointed = null;
  }
  showLayer();
  showBeside();
  showOpacity();
}

// --- the address names what is shown ---

function writeAddress() {
  const { cols } = grid(), name = encodeURIComponent(backbones[state.backbone].name);
  const address = `#image=${state.image + 1}&backbone=${name.replaceAll("%2F", "/").replaceAll("%3A", ":")}`
    + `&layer=${layers()[state.layer].layer}&patch=${Math.floor(state.patch / cols)},${state.patch % cols}`
    + (state.beside ? `&beside=${encodeURIComponent(namedBeside())}` : "");
  if (location.hash !== address) history.replaceState(null, "", address);
}

function readAddress() {
  const asked = new URLSearchParams(location.hash.length > 1 ? location.hash.slice(1) : start);
  const image = whole(Number(asked.get("image")) - 1 || 0, 0, images.length - 1);
  const backbone = Math.max(0, backbones.findIndex(({ name }) => name === asked.get("backbone")));
  const { layers: there, grids } = backbones[backbone], { rows, cols, labels } = grids[image];
  let layer = there.findIndex((entry) => String(entry.layer) === asked.get("layer"));
  if (layer < 0) layer = backbones[backbone].best;
  const [r, c] = (asked.get("patch") ?? "").split(",").map(Number);
  const inside = Number.isInteger(r) && Number.isInteger(c) && r >= 0 && c >= 0 && r < rows && c < cols;
  return { image, backbone, layer, beside: besideNamed(asked.get("beside") ?? ""), patch: inside ? r * cols + c : firstPatch(rows, cols, labels, images[image]) };
}

// The middle of the object with the most patches, one with twins if there is any: a first click worth looking at.
function firstPatch(rows, cols, labels, { objects }) {
  const patches = objects.map((_, object) => labels.flatMap((label, patch) => (label === object ? [patch] : [])));
  const worth = patches.map((found, k) => found.length * (objects[k].twins.length ? 1000 : 1));
  const best = patches[worth.indexOf(Math.max(0, ...worth))];
  if (!best?.length) return Math.floor(rows / 2) * cols + Math.floor(cols / 2);
  const mean = [0, 1].map((axis) => best.reduce((sum, p) => sum + (axis ? p % cols : Math.floor(p / cols)), 0) / best.length);
  const away = (p) => (Math.floor(p / cols) - mean[0]) ** 2 + (p % cols - mean[1]) ** 2;
  return best.reduce((near, p) => (away(p) < away(near) ? p : near));
}

// --- controls ---

function patchUnder(event, stage = $("stage")) {
  const box = stage.getBoundingClientRect(), { rows, cols } = grid();
  const r = Math.floor((event.clientY - box.top) / box.height * rows);
  const c = Math.floor((event.clientX - box.left) / box.width * cols);
  return r >= 0 && c >= 0 && r < rows && c < cols ? r * cols + c : null;
}

function listen() {
  const stage = $("stage");
  stage.addEventListener("pointermove", (event) => {
    pointed = patchUnder(event);
    drawNeedle();
    if (event.buttons & 1 && event.pointerType !== "touch" && pointed !== null && pointed !== state.patch) go({ patch: pointed });
  });
  stage.addEventListener("pointerleave", () => { pointed = null; drawNeedle(); });
  stage.addEventListener("click", (event) => {
    const patch = patchUnder(event);
    if (patch !== null && patch !== state.patch) go({ patch });
  });
  $("save").addEventListener("click", savePicture);
  $("layer").addEventListener("input", () => go({ layer: +$("layer").value }));
  $("threshold").addEventListener("input", drawGuess);
  $("opacity").addEventListener("input", showOpacity);
  $("outlines").addEventListener("change", () => draw());
  $("colours").addEventListener("change", showColours);
  addEventListener("resize", () => drawCurve($("curve"), layers(), state.layer));
  addEventListener("hashchange", () => go(readAddress()));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const { rows, cols } = grid(), r = Math.floor(state.patch / cols), c = state.patch % cols;
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const steps = { "[": { layer: state.layer - 1 }, "]": { layer: state.layer + 1 }, "-": { layer: state.layer - 1 },
      "−": { layer: state.layer - 1 }, "+": { layer: state.layer + 1 }, "=": { layer: state.layer + 1 },
      ",": { image: state.image - 1 }, ".": { image: state.image + 1 } };
    if (moves[event.key] && event.target.tagName !== "INPUT") {
      const [down, across] = moves[event.key];
      go({ patch: whole(r + down, 0, rows - 1) * cols + whole(c + across, 0, cols - 1) });
    } else if (steps[event.key]) go(steps[event.key]);
    else return;
    event.preventDefault();
  });
}

function showOpacity() {
  const opacity = +$("opacity").value;
  for (const prefix of ["", "beside-"]) {
    $(`${prefix}heat`).style.opacity = opacity;
    // Under strong colours the picture is grey, so that hues always mean affinity.
    const under = $(`${prefix}heat`).hidden ? 0 : opacity;
    $(`${prefix}picture`).style.filter = `saturate(${Math.max(0, 1 - 1.3 * under)})`;
  }
  $("opacity-value").textContent = two(opacity);
}

function showColours() {
  table = colourTable($("colours").value);
  $("colourbar").style.background = gradientOf($("colours").value);
  document.documentElement.style.setProperty("--guess", CONTRAST[$("colours").value]);
  if (row.length) draw();
}

function begin() {
  $("version").textContent = version;
  let byPointer = false;
  $("backbones").addEventListener("pointerdown", () => { byPointer = true; });
  $("backbones").addEventListener("keydown", () => { byPointer = false; });
  makeBeside();
  $("backbones").append(...backbones.map(({ name, objective }, k) => {
    const label = make("label"), input = make("input");
    Object.assign(input, { type: "radio", name: "backbone", value: String(k) });
    input.addEventListener("change", () => go({ backbone: k }));
    // After a click arrow keys go on moving the patch; who came by keys moves along the backbones.
    input.addEventListener("click", () => { if (byPointer) setTimeout(() => $("stage").focus({ preventScroll: true })); });
    label.append(input, make("span", "", name), make("small", "", objective === "random-init" ? "never trained" : objective));
    return label;
  }));
  $("thumbs").append(...images.map(({ name, picture }, k) => {
    const button = make("button"), thumb = make("img");
    button.type = "button";
    button.title = name;
    Object.assign(thumb, { src: picture, alt: "" });
    // Names of one set often differ at their ends only.
    button.append(thumb, make("span", "", name.length > 14 ? `${name.slice(0, 5)}…${name.slice(-6)}` : name));
    button.addEventListener("click", () => go({ image: k }));
    return button;
  }));
  $("thumbs-block").hidden = images.length < 2;
  listen();
  for (const control of ["threshold", "opacity", "colours"]) if (control in start) $(control).value = start[control];
  showOpacity();
  showColours();
  Object.assign(state, readAddress());
  show({ image: -1, backbone: -1 });
  return draw();
}

// For tests and the curious: bindkit.affinities(), bindkit.beside(), bindkit.scores(backbone, image, layer, patch).
window.bindkit = {
  state: () => ({ ...state }),
  affinities: () => [...row],
  beside: () => [...maps.find(({ prefix }) => prefix)?.row ?? []],
  scores: async (backbone, image, layer, patch) => [...(await affinities(backbone, image, layer)).of(patch)],
};

begin().catch((error) => {
  const old = typeof DecompressionStream === "undefined";
  const words = old ? "This browser is too old for this page; use one from 2023 or later." : `This page is damaged: ${error.message}`;
  document.querySelector("header").append(make("p", "problem", words));
  throw error;
});
