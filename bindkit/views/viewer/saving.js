// What is shown as a picture: drawn on a canvas from the page's own parts, and handed over as a file.

const SIDE = 720, EDGE = 18, LINE = 20;

// One stage: the picture, grey under strong colours, the colours, and the lines in the style sheet's own look.
function drawStage(context, prefix, left, top, width, height) {
  const heat = $(`${prefix}heat`), marks = $(`${prefix}marks`), shown = marks.getBoundingClientRect();
  context.drawImage($(`${prefix}picture`), left, top, width, height);
  if (!heat.hidden) {
    const opacity = +$("opacity").value;
    context.save();
    context.globalCompositeOperation = "saturation";
    context.globalAlpha = Math.min(1, 1.3 * opacity);
    context.fillStyle = "#808080";
    context.fillRect(left, top, width, height);
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = false;
    context.drawImage(heat, left, top, width, height);
    context.restore();
  }
  const enlarged = new DOMMatrix([width / shown.width, 0, 0, height / shown.height, left, top]);
  context.save();
  context.lineJoin = context.lineCap = "round";
  for (const mark of marks.querySelectorAll("path, rect")) {
    const look = getComputedStyle(mark), path = new Path2D(), own = new Path2D(mark.getAttribute("d") ?? "");
    if (look.visibility === "hidden") continue;
    if (mark.tagName === "rect") own.rect(...["x", "y", "width", "height"].map((name) => +mark.getAttribute(name)));
    const { a, b, c, d, e, f } = mark.getCTM();
    path.addPath(own, enlarged.multiply(new DOMMatrix([a, b, c, d, e, f])));
    context.strokeStyle = look.stroke;
    context.lineWidth = parseFloat(look.strokeWidth);
    context.setLineDash(look.strokeDasharray === "none" ? [] : look.strokeDasharray.split(/[, ]+/).map(parseFloat));
    context.stroke(path);
  }
  context.restore();
}

function drawScale(context, left, top, width) {
  const colours = context.createLinearGradient(left, 0, left + width, 0), limit = +$("threshold").value;
  for (let step = 0; step < 10; step++) {
    colours.addColorStop(step / 9, `rgb(${table.subarray(4 * Math.round(255 * step / 9), 4 * Math.round(255 * step / 9) + 3)})`);
  }
  context.fillStyle = colours;
  context.fillRect(left, top, width, 10);
  context.fillStyle = CONTRAST[$("colours").value];
  context.fillRect(left + limit * width - 1.5, top - 3, 3, 16);
}

// The picture as a canvas, with what it shows in words.
function pictureOf() {
  const { width, height, name } = images[state.image], { cols } = grid();
  const scale = SIDE / Math.max(width, height), [wide, tall] = [width * scale, height * scale];
  const parts = state.beside ? ["", "beside-"] : [""], canvas = make("canvas"), context = canvas.getContext("2d");
  canvas.width = Math.max(420, parts.length * wide + (parts.length + 1) * EDGE);
  canvas.height = tall + 2 * EDGE + 6 * LINE;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const write = (words, left, top, weight = "400") => {
    context.fillStyle = "#1d2226";
    context.font = `${weight} 14px system-ui, sans-serif`;
    context.fillText(words, left, top);
  };
  parts.forEach((prefix, k) => {
    const left = EDGE + k * (wide + EDGE);
    const off = $(`${prefix}off`);
    write($(`${prefix}caption`).textContent + (off.hidden ? "" : `: ${off.textContent}`), left, EDGE + 12, "600");
    drawStage(context, prefix, left, EDGE + LINE, wide, tall);
  });
  let line = EDGE + LINE + tall + 18;
  drawScale(context, EDGE, line, Math.min(300, wide));
  line += 10 + LINE;
  const own = objectWords(labelOf(state.patch));
  const outlined = $("legend-off").hidden ? `outlined: ${two(+$("threshold").value)} or more` : "no outline";
  write(`affinity 0 to 1; ${outlined}`, EDGE, line);
  write(`${name}, row ${Math.floor(state.patch / cols)}, column ${state.patch % cols}${own ? `: ${own}` : ""}`, EDGE, line + LINE);
  return canvas;
}

function savePicture() {
  const { cols } = grid(), at = `row${Math.floor(state.patch / cols)}-column${state.patch % cols}`;
  const words = [images[state.image].name, backbones[state.backbone].name, `layer${layers()[state.layer].layer}`, at];
  const name = `${words.join("-").replace(/[^\w.-]+/g, "-")}.png`;
  pictureOf().toBlob((content) => {
    const link = make("a");
    link.href = URL.createObjectURL(content);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    $("saved").textContent = `Saved as ${name}`;
  });
}
