// From a picture to MNIST's form: the same steps as data/photo.py, which says why. Images are [height, width].
"use strict";

// RGBA bytes [height * width * 4] of a picture of a digit -> pixels [28 * 28] in 0..255, bright on black; black if
// nothing is written.
function photo_to_mnist({ photo }, rgba, width, height) {
  const { data, width: W, height: H } = reduced_rgb(photo, rgba, width, height); // [H, W, 3]
  let paper = new Float32Array(H * W).fill(1); // 0 where there is ink
  let ink, smooth, is_ink;
  for (let round = 0; round < 2; round++) {
    const count = box_sum(paper, W, H, photo.window);
    const dark = new Float32Array(H * W).fill(-Infinity); // dark ink on light paper
    const light = new Float32Array(H * W).fill(-Infinity);
    for (let channel = 0; channel < 3; channel++) {
      const total = box_sum(paper.map((value, i) => value * data[3 * i + channel]), W, H, photo.window);
      for (let i = 0; i < H * W; i++) {
        const difference = count[i] > 0.5 ? total[i] / count[i] - data[3 * i + channel] : 0;
        dark[i] = Math.max(dark[i], difference);
        light[i] = Math.max(light[i], -difference);
      }
    }
    const inks = [dark, light];
    const smooths = inks.map((values) => smoothed(values, W, H));
    const stronger = argmax(smooths.map((values) => largest(values) - mean_of_edge(values, W, H)));
    [ink, smooth] = [inks[stronger], smooths[stronger]];
    const least = Math.max(photo.ink * largest(smooth), photo.min_contrast);
    is_ink = smooth.map((value) => value > least);
    paper = is_ink.map((value) => 1 - value);
  }
  if (!is_ink.some(Boolean)) return new Uint8Array(28 * 28);
  const digit = find_digit(photo, smooth, is_ink, W, H);
  const inside = ink.filter((_, i) => digit[i]).sort();
  const white = Math.max(quantile(inside, photo.white), photo.min_contrast);
  const near = box_sum(digit, W, H, 3); // a rim of one pixel
  const share = ink.map((value, i) => (near[i] > 0.5 ? Math.min(1, Math.max(0, value / white)) : 0));
  return to_mnist_form(photo, share, W, H);
}

// Sorted values -> the value below which a share of them lies, between two values in a straight line.
function quantile(values, share) {
  const place = share * (values.length - 1);
  const low = Math.floor(place);
  return values[low] + (place - low) * ((values[low + 1] ?? 0) - values[low]);
}

function mean_of_edge(values, W, H) {
  const edge = values.filter((_, i) => i < W || i >= W * (H - 1) || i % W === 0 || i % W === W - 1);
  return edge.reduce((sum, value) => sum + value, 0) / edge.length;
}

// As Python rounds: to the even one of two equally near.
function round(value) {
  const near = Math.round(value);
  return near - value === 0.5 && near % 2 ? near - 1 : near;
}

// Step 1: the longer side resized to `side`, transparency replaced -> [H, W, 3].
function reduced_rgb({ side }, rgba, width, height) {
  const [W, H] = [width, height].map((length) => Math.max(1, round((length * side) / Math.max(width, height))));
  let is_opaque = true;
  for (let i = 3; i < rgba.length; i += 4) is_opaque &&= rgba[i] === 255;
  const channels = is_opaque ? 3 : 4;
  const pixels = new Float32Array(width * height * channels); // colours times alpha, alpha
  for (let i = 0; i < width * height; i++) {
    const alpha = rgba[4 * i + 3];
    for (let c = 0; c < 3; c++) {
      const colour = rgba[4 * i + c];
      pixels[i * channels + c] = is_opaque ? colour : round((colour * alpha) / 255);
    }
    if (!is_opaque) pixels[4 * i + 3] = alpha;
  }
  const small = resize(pixels, width, height, channels, W, H, true);
  if (is_opaque) return { data: small, width: W, height: H };
  const colour = (i, c) => Math.min(255, Math.floor((255 * small[4 * i + c]) / small[4 * i + 3])); // of what is visible
  let darkest = 256;
  for (let i = 0; i < W * H; i++) {
    if (small[4 * i + 3] > 127) darkest = Math.min(darkest, colour(i, 0), colour(i, 1), colour(i, 2));
  }
  const background = darkest > 127 && darkest < 256 ? 0 : 255;
  const data = new Float32Array(W * H * 3);
  for (let i = 0; i < W * H * 3; i++) {
    const [pixel, c] = [Math.floor(i / 3), i % 3];
    const alpha = small[4 * pixel + 3] / 255;
    data[i] = round((alpha ? colour(pixel, c) * alpha : 0) + background * (1 - alpha));
  }
  return { data, width: W, height: H };
}

// Bilinear, with a wider triangle where pixels get fewer, as Pillow and torchvision do it: each side in turn.
// [height, width, channels] -> [H, W, channels]. Bytes are rounded after each turn.
function resize(data, width, height, channels, W, H, is_bytes = false) {
  // [count, length, step] -> [count, wanted, step].
  const along = (source, length, wanted, count, step) => {
    if (length === wanted) return source;
    const result = new Float32Array(count * wanted * step);
    const scale = length / wanted;
    const support = Math.max(scale, 1);
    for (let to = 0; to < wanted; to++) {
      const center = (to + 0.5) * scale;
      const low = Math.max(0, Math.trunc(center - support + 0.5));
      const high = Math.min(length, Math.trunc(center + support + 0.5));
      const triangle = Float64Array.from({ length: high - low }, (_, i) =>
        Math.max(0, 1 - Math.abs((low + i + 0.5 - center) / support)));
      const sum = triangle.reduce((total, weight) => total + weight, 0);
      for (let row = 0; row < count; row++) {
        for (let k = 0; k < step; k++) {
          let value = 0;
          let place = (row * length + low) * step + k;
          for (let i = 0; i < triangle.length; i++, place += step) value += triangle[i] * source[place];
          value /= sum;
          result[(row * wanted + to) * step + k] = is_bytes ? Math.round(value) : value;
        }
      }
    }
    return result;
  };
  const narrow = along(data, width, W, height, channels); // [height, W, channels]
  return along(narrow, height, H, 1, W * channels);
}

// [H, W] -> the sums of the boxes of size x size around each pixel, cut off at the edge.
function box_sum(values, W, H, size) {
  const radius = size >> 1;
  const total = new Float64Array((H + 1) * (W + 1)); // of all above and to the left
  for (let row = 0; row < H; row++) {
    for (let column = 0, sum = 0; column < W; column++) {
      sum += values[row * W + column];
      total[(row + 1) * (W + 1) + column + 1] = sum + total[row * (W + 1) + column + 1];
    }
  }
  const sums = new Float32Array(H * W);
  for (let row = 0; row < H; row++) {
    const top = Math.max(0, row - radius) * (W + 1);
    const bottom = Math.min(H, row + radius + 1) * (W + 1);
    for (let column = 0; column < W; column++) {
      const left = Math.max(0, column - radius);
      const right = Math.min(W, column + radius + 1);
      sums[row * W + column] = total[bottom + right] - total[top + right] - total[bottom + left] + total[top + left];
    }
  }
  return sums;
}

// [H, W] -> the means of boxes of 3 x 3; at the edge its pixels count twice.
function smoothed(values, W, H) {
  const sums = box_sum(values, W, H, 3);
  const at = (row, column) => values[Math.min(H - 1, Math.max(0, row)) * W + Math.min(W - 1, Math.max(0, column))];
  for (let row = 0; row < H; row++) {
    const step = row % (H - 1) && W > 1 ? W - 1 : 1; // within the picture only the first and the last column
    for (let column = 0; column < W; column += step) {
      let sum = 0;
      for (let i = 0; i < 9; i++) sum += at(row - 1 + Math.floor(i / 3), column - 1 + (i % 3));
      sums[row * W + column] = sum;
    }
  }
  return sums.map((sum) => sum / 9);
}

// Step 3: ink and where it is ink [H, W] -> where it is the digit, 0 or 1 [H, W].
function find_digit({ near, min_part }, ink, is_ink, W, H) {
  const strokes = new Int32Array(H * W); // 0, or the number of a stroke; corners connect
  const parts = []; // of each stroke: its mass, its box
  for (let first = 0; first < H * W; first++) {
    if (!is_ink[first] || strokes[first]) continue;
    const part = { mass: 0, start: [H, W], stop: [0, 0] };
    const open = [first];
    strokes[first] = parts.push(part);
    while (open.length) {
      const i = open.pop();
      const place = [Math.floor(i / W), i % W];
      part.mass += ink[i];
      for (const axis of [0, 1]) {
        part.start[axis] = Math.min(part.start[axis], place[axis]);
        part.stop[axis] = Math.max(part.stop[axis], place[axis] + 1);
      }
      for (let y = Math.max(0, place[0] - 1); y <= Math.min(H - 1, place[0] + 1); y++) {
        for (let x = Math.max(0, place[1] - 1); x <= Math.min(W - 1, place[1] + 1); x++) {
          if (!is_ink[y * W + x] || strokes[y * W + x]) continue;
          strokes[y * W + x] = parts.length;
          open.push(y * W + x);
        }
      }
    }
  }
  const from_middle = ({ start, stop }) => // 1 in a corner
    Math.hypot(...[H, W].map((side, axis) => (start[axis] + stop[axis] - side) / 2)) / Math.hypot(H / 2, W / 2);
  const scores = parts.map((part) => part.mass * (1 - from_middle(part)));
  const main = parts[scores.indexOf(largest(scores))];
  const reach = near * Math.max(main.stop[0] - main.start[0], main.stop[1] - main.start[1]);
  const is_digit = parts.map((part) => {
    const axes = [0, 1].every((a) => part.start[a] <= main.stop[a] + reach && part.stop[a] >= main.start[a] - reach);
    return axes && part.mass >= min_part * main.mass;
  });
  return Float32Array.from(strokes, (stroke) => (stroke && is_digit[stroke - 1] ? 1 : 0));
}

// A bright digit [H, W] -> pixels [28 * 28] in 0..255: the longer side 20 pixels, centred by mass.
function to_mnist_form({ min_ink }, ink, W, H, box = 20) {
  const most = largest(ink);
  let [top, bottom, left, right] = [H, 0, W, 0];
  ink.forEach((value, i) => {
    if (value <= min_ink * most) return;
    const [row, column] = [Math.floor(i / W), i % W];
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
  });
  const [height, width] = [bottom - top + 1, right - left + 1];
  const crop = new Float32Array(height * width);
  for (let i = 0; i < crop.length; i++) crop[i] = ink[(top + Math.floor(i / width)) * W + left + (i % width)];
  const [h, w] = [height, width].map((side) => Math.max(1, round((side * box) / Math.max(height, width))));
  const small = resize(crop, width, height, 1, w, h); // [h, w]
  const mass = small.reduce((sum, value) => sum + value, 0);
  const center = (place) => small.reduce((sum, value, i) => sum + value * place(i), 0) / mass;
  const centers = [center((i) => Math.floor(i / w)), center((i) => i % w)];
  const [row, column] = [h, w].map((side, axis) => Math.min(28 - side, Math.max(0, round(13.5 - centers[axis]))));
  const [frame, brightest] = [new Uint8Array(28 * 28), largest(small)];
  small.forEach((value, i) => {
    frame[(row + Math.floor(i / w)) * 28 + column + (i % w)] = round((255 * value) / brightest);
  });
  return frame;
}
