// Packed affinities back to numbers; packing.py, beside this file, says what they mean and does the same in Python.

const digitOf = new Uint8Array(128);
[...ALPHABET].forEach((character, digit) => { digitOf[character.charCodeAt(0)] = digit; });

function toBytes(text, length) {
  const words = text.length / 5, bytes = new Uint8Array(words * 4);
  for (let word = 0, at = 0; word < words; word++) {
    let value = 0;
    for (let digit = 0; digit < 5; digit++) value = value * 85 + digitOf[text.charCodeAt(at++)];
    bytes[4 * word] = value >>> 24;
    bytes[4 * word + 1] = value >>> 16;
    bytes[4 * word + 2] = value >>> 8;
    bytes[4 * word + 3] = value;
  }
  return bytes.subarray(0, length);
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Affinities {
  static async read(id, about, n) {
    const texts = document.getElementById(id).textContent.split(" ");
    const [body, halves] = await Promise.all(texts.map((text, part) => inflate(toBytes(text, about.bytes[part]))));
    return new Affinities(n, about.rank, about.symmetric, body, halves);
  }

  constructor(n, rank, symmetric, body, halves) {
    this.n = n;
    this.rank = rank;
    this.symmetric = symmetric;
    this.weights = new Float64Array(rank);
    const view = new DataView(body.buffer, body.byteOffset);
    for (let k = 0; k < rank; k++) this.weights[k] = view.getFloat32(4 * k, true);
    const low = body.subarray(4 * rank), high = low.subarray(rank * n);
    this.factors = new Int16Array(rank * n);
    for (let at = 0; at < this.factors.length; at++) this.factors[at] = low[at] | (high[at] << 8);
    const pairs = symmetric ? n * (n + 1) / 2 : n * n;
    this.residuals = new Int8Array(pairs);
    let large = Math.ceil(pairs / 2);
    for (let at = 0; at < pairs; at++) {
      const half = (halves[at >> 1] >> (at % 2 * 4)) & 15;
      this.residuals[at] = half === 8 ? (halves[large++] << 24) >> 24 : half > 8 ? half - 16 : half;
    }
  }

  // Affinities of one patch to all.
  of(patch) {
    const { n, rank, factors, residuals } = this;
    const logits = new Float64Array(n), row = new Float32Array(n);
    for (let k = 0; k < rank; k++) {
      const start = k * n, scale = this.weights[k] * factors[start + patch];
      if (scale) for (let j = 0; j < n; j++) logits[j] += scale * factors[start + j];
    }
    for (let j = 0; j < n; j++) {
      const at = !this.symmetric ? patch * n + j
        : patch >= j ? patch * (patch + 1) / 2 + j : j * (j + 1) / 2 + patch;
      row[j] = Math.min(1, Math.max(0, 1 / (1 + Math.exp(-logits[j])) + STEP * residuals[at]));
    }
    return row;
  }
}
