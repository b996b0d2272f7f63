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
