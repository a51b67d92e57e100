// Pen strokes (lists of points [x, y]) to the pixels that the networks were trained on.

const SIDE = 28; // of a digit
const INNER = 20; // of its ink
const PEN = 2.6; // pixels
const HIGH = 16; // of a letter
const WIDE = 8;

/**
 * A digit prepared as in MNIST (LeCun et al., 1998): scaled to 20 x 20 pixels, with its
 * centre of mass in the middle of 28 x 28.
 *
 * @returns {number[][]} 28 rows of 28 pixels, 0 to 1
 */
export function digit(strokes) {
  const { left, top, width, height } = box(strokes);
  const scale = (INNER - PEN) / Math.max(width, height, 1e-9);
  const middle = SIDE / 2;
  const fitted = moved(strokes, (x, y) => [
    (x - left - width / 2) * scale + middle,
    (y - top - height / 2) * scale + middle,
  ]);
  const [massX, massY] = centre(inked(fitted));
  return inked(moved(fitted, (x, y) => [x + middle - massX, y + middle - massY]));
}

/**
 * A letter prepared as in Kassel's data: scaled to fit 16 x 8 pixels, in lines one pixel wide.
 *
 * @returns {number[]} 128 pixels, row by row, 0 or 1
 */
export function letter(strokes) {
  const { left, top, width, height } = box(strokes);
  const scale = Math.min(
    (WIDE - 1) / Math.max(width, 1e-9),
    (HIGH - 1) / Math.max(height, 1e-9),
  );
  const x0 = (WIDE - 1 - width * scale) / 2;
  const y0 = (HIGH - 1 - height * scale) / 2;
  const pixels = new Array(HIGH * WIDE).fill(0);
  const fitted = moved(strokes, (x, y) => [
    Math.round((x - left) * scale + x0),
    Math.round((y - top) * scale + y0),
  ]);
  for (const [from, to] of segments(fitted)) {
    const steps = Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]), 1);
    for (let step = 0; step <= steps; step++) {
      const x = Math.round(from[0] + ((to[0] - from[0]) * step) / steps);
      const y = Math.round(from[1] + ((to[1] - from[1]) * step) / steps);
      pixels[y * WIDE + x] = 1;
    }
  }
  return pixels;
}

function moved(strokes, move) {
  return strokes.map((stroke) => stroke.map(([x, y]) => move(x, y)));
}

function box(strokes) {
  const points = strokes.flat();
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const left = Math.min(...xs);
  const top = Math.min(...ys);
  return { left, top, width: Math.max(...xs) - left, height: Math.max(...ys) - top };
}

function* segments(strokes) {
  for (const stroke of strokes) {
    if (stroke.length === 1) yield [stroke[0], stroke[0]];
    for (let at = 1; at < stroke.length; at++) yield [stroke[at - 1], stroke[at]];
  }
}

/** How much of each pixel a round pen covers, by the pixel's distance from the stroke. */
function inked(strokes) {
  const all = [...segments(strokes)];
  const rows = [];
  for (let y = 0; y < SIDE; y++) {
    const row = [];
    for (let x = 0; x < SIDE; x++) {
      const near = all.reduce((least, [from, to]) => {
        return Math.min(least, distance(x + 0.5, y + 0.5, from, to));
      }, Infinity);
      row.push(Math.min(1, Math.max(0, PEN / 2 + 0.5 - near)));
    }
    rows.push(row);
  }
  return rows;
}

function distance(x, y, [x0, y0], [x1, y1]) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const along = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1);
  const share = Math.min(1, Math.max(0, along));
  return Math.hypot(x - x0 - share * dx, y - y0 - share * dy);
}

function centre(rows) {
  let [mass, massX, massY] = [0, 0, 0];
  rows.forEach((row, y) => {
    row.forEach((ink, x) => {
      mass += ink;
      massX += ink * (x + 0.5);
      massY += ink * (y + 0.5);
    });
  });
  return [massX / mass, massY / mass];
}
