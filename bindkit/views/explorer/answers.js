// A pressed patch's affinities, computed here from the factors that Python sent: the map answers before the kernel does,
// or while it is busy. What the kernel says a moment later is the same and stands.

const floats = ({ buffer, byteOffset, byteLength }) => new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));

const unpacked = (answer) => ({
  ...answer,
  left: floats(answer.left), right: floats(answer.right),
  leftOffset: floats(answer.left_offset), rightOffset: floats(answer.right_offset),
});

// As `Factors.affinity` in Python.
function affinities({ left, right, leftOffset, rightOffset, rank, scale, shown: [rows, cols] }, patch) {
  const lines = [];
  for (let row = 0, other = 0; row < rows; row++) {
    const line = new Array(cols);
    for (let col = 0; col < cols; col++, other++) {
      let logit = leftOffset[patch] + rightOffset[other];
      for (let k = 0, i = patch * rank, j = other * rank; k < rank; k++) logit += left[i + k] * right[j + k];
      line[col] = Math.round(1e5 / (1 + Math.exp(-logit * scale))) / 1e5;
    }
    lines.push(line);
  }
  return lines;
}

// Closed lines around the patches at or above the threshold, as one line with gaps. Few long pieces: each is drawn anew.
// None around nearly all patches, as `Panel.is_outlined` in Python.
function outline(lines, threshold) {
  const rows = lines.length, cols = lines[0].length, x = [], y = [];
  if (10 * lines.flat().filter((value) => value >= threshold).length > 9 * rows * cols) return { x, y };
  for (const points of loopsAround(rows, cols, (patch) => lines[Math.floor(patch / cols)][patch % cols] >= threshold)) {
    if (x.length) { x.push(null); y.push(null); }
    for (let i = 0; i <= points.length; i += 2) {
      x.push(points[i % points.length] - 0.5);
      y.push(points[i % points.length + 1] - 0.5);
    }
  }
  return { x, y };
}

function framed(row, col, inset) {
  const near = inset - 0.5, far = 0.5 - inset;
  return { x: [near, far, far, near, near].map((part) => col + part), y: [near, near, far, far, near].map((part) => row + part) };
}

// What Plotly's `restyle` takes for a press at a place of a panel: one entry a trace, undefined for what stays.
function restyled(answers, panel, { down, across }) {
  const traces = [], data = { z: [], x: [], y: [] };
  const put = (trace, { z, x, y }) => { traces.push(trace); data.z.push(z); data.x.push(x); data.y.push(y); };
  for (const answer of answers.filter(({ panels }) => panels.includes(panel))) {
    const [rows, cols] = answer.own, place = (share, n) => Math.min(Math.max(Math.floor(share * n), 0), n - 1);
    const row = place(down, rows), col = place(across, cols);
    const z = affinities(answer, row * cols + col);
    put(answer.heat, { z });
    put(answer.guess, outline(z, answer.threshold));
    for (const mark of answer.marks) put(mark, framed(row, col, answer.inset));
  }
  return traces.length ? { restyle_data: data, restyle_traces: traces } : null;
}

// Plotly's widget is told as if by Python, but by its event alone: nothing of it is sent to the kernel. The label under
// the pointer is drawn anew when the kernel has answered, not twice.
function redraw(figure, plot, told) {
  const again = plot._fullLayout?._rehover;
  if (again) plot._fullLayout._rehover = null;
  figure.attributes._py2js_restyle = told;
  figure.trigger("change:_py2js_restyle", figure, told);
  figure.attributes._py2js_restyle = null;
  if (again) plot._fullLayout._rehover = again;
}
