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
