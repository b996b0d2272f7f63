// What stands beside the map: nothing, the picture alone, or another backbone's or layer's map of the same patch.

// state.beside is "", "picture", or positions "backbone.layer".
function besideMap() {
  const [backbone, layer] = state.beside.split(".").map(Number);
  return layer === undefined ? null : { backbone, layer };
}

const titleOf = (backbone, layer) => `${backbones[backbone].name}, layer ${backbones[backbone].layers[layer].layer}`;

// The chosen patch where the grid is another one: it keeps its place in the image.
function placedIn(patch, from, to) {
  const r = (Math.floor(patch / from.cols) + 0.5) / from.rows, c = (patch % from.cols + 0.5) / from.cols;
  return Math.floor(r * to.rows) * to.cols + Math.floor(c * to.cols);
}

// As the address has it, by names: "picture", or "backbone,layer".
function namedBeside() {
  const there = besideMap();
  return there ? [backbones[there.backbone].name, backbones[there.backbone].layers[there.layer].layer].join(",") : state.beside;
}

function besideNamed(words) {
  const [, name, number] = /^(.*),(\d+)$/.exec(words) ?? [], backbone = backbones.findIndex((entry) => entry.name === name);
  const layer = backbones[backbone]?.layers.findIndex((entry) => String(entry.layer) === number);
  return layer >= 0 ? `${backbone}.${layer}` : words === "picture" ? words : "";
}

// A second stage with parts of the same names.
function makeBeside() {
  const second = $("map").cloneNode(true);
  second.querySelector("#tip").remove();
  const stage = second.querySelector("#stage");
  for (const name of ["tabindex", "role", "aria-label", "aria-describedby"]) stage.removeAttribute(name);
  for (const part of [second, ...second.querySelectorAll("[id]")]) part.id = `beside-${part.id}`;
  $("stages").append(second);
  stage.addEventListener("click", (event) => {
    const patch = patchUnder(event, stage);
    if (patch !== null) go({ patch });
  });
  offerBeside();
  $("beside").addEventListener("change", () => {
    const chosen = $("beside").value;
    go({ beside: chosen === "keep" ? `${state.backbone}.${state.layer}` : chosen });
  });
}

// Each backbone at its best layer, and this map, to be kept while the other goes on.
function offerBeside() {
  const best = backbones.map((backbone, k) => `${k}.${backbone.best}`), kept = besideMap() && !best.includes(state.beside);
  const offered = [["", "nothing"], ["picture", "the picture"], ...best.map((at) => [at, titleOf(...at.split("."))]),
    ...(kept ? [[state.beside, titleOf(...state.beside.split("."))]] : []), ["keep", "this map, kept"]];
  $("beside").replaceChildren(...offered.map(([value, words]) => Object.assign(make("option", "", words), { value })));
  $("beside").value = state.beside;
}

function showBeside() {
  const there = besideMap();
  offerBeside();
  $("beside-map").hidden = !state.beside;
  $("stages").classList.toggle("two", Boolean(state.beside));
  for (const prefix of ["", "beside-"]) $(`${prefix}caption`).hidden = !state.beside;
  $("caption").textContent = titleOf(state.backbone, state.layer);
  $("beside-caption").textContent = there ? titleOf(there.backbone, there.layer) : "The picture";
  $("beside-heat").hidden = !there;
}
