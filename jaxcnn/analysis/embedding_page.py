"""The interactive page of an embedding: one HTML file that needs no network, with thumbnails of all images."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np

from jaxcnn.analysis import figures
from jaxcnn.analysis.embedding import class_colors
from jaxcnn.errors import printable
from jaxcnn.files import open_replacement

MAX_SPRITE_SIDE = 8192  # pixels of the sheet of thumbnails, which browsers decode as one picture


def write_embedding_page(path: str, embeddings: Mapping[str, np.ndarray], images: np.ndarray, names: Sequence[str],
                         labels: np.ndarray, predictions: np.ndarray, confidences: np.ndarray, class_names: Sequence[str],
                         title: str, is_augmented: np.ndarray | None = None) -> None:
    """Write a page that shows embeddings, to be moved and enlarged, and the image under the mouse.

    Args:
      path: the HTML file.
      embeddings: points (N, 2) by name.
      images: uint8 (N, H, W, C), of which the page holds thumbnails.
      names: name of each image.
      labels: (N,) classes, -1 where they are unknown.
      predictions: (N,) predicted classes.
      confidences: (N,) their probabilities.
      class_names: names of the classes.
      title: title of the page.
      is_augmented: (N,) bool: images that are drawn as crosses; None: none is.
    """
    count = len(images)
    columns = max(1, int(np.ceil(np.sqrt(count))))
    thumbnails = figures.thumbnails(images, min(64, MAX_SPRITE_SIDE // columns))
    data = {
        'points': {printable(name): np.round(_unit_square(points), 5).tolist() for name, points in embeddings.items()},
        'names': [printable(name) for name in names], 'labels': labels.tolist(), 'predictions': predictions.tolist(),
        'confidences': np.round(np.nan_to_num(confidences), 4).tolist(),
        'augmented': [] if is_augmented is None else is_augmented.astype(int).tolist(),
        'classes': [printable(str(name)) for name in class_names], 'colors': class_colors(len(class_names)),
        'columns': columns, 'width': thumbnails.shape[2], 'height': thumbnails.shape[1],
        'sprite': f'data:image/jpeg;base64,{base64.b64encode(_sprite(thumbnails, columns)).decode()}',
    }
    text = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')  # so that no name ends the script
    with open_replacement(path) as file:
        file.write(_PAGE.replace('TITLE', html.escape(printable(title))).replace('DATA', text))


def _unit_square(points: np.ndarray) -> np.ndarray:
    """Return points scaled to [0, 1], with the same factor for both coordinates."""
    low, high = points.min(0), points.max(0)
    scale = float((high - low).max()) or 1.0
    return (points - (low + high) / 2) / scale + 0.5


def _sprite(thumbnails: np.ndarray, columns: int) -> bytes:
    """Return a JPEG file with thumbnails (N, H, W, C) in rows of `columns`."""
    from PIL import Image
    count, height, width, channels = thumbnails.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = thumbnails
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, columns * width, -1)
    output = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(output, 'JPEG', quality=90)
    return output.getvalue()


_PAGE = '''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
html, body { height: 100%; margin: 0; overflow: hidden; font: 14px/1.4 system-ui, sans-serif; color: #222; }
#bar { position: absolute; left: 0; right: 0; top: 0; padding: 6px 12px; background: #f5f5f5; }
#bar b { margin-right: 1em; }
#bar label { margin-right: 1em; white-space: nowrap; }
#legend { position: absolute; right: 0; top: 36px; bottom: 0; width: 190px; overflow-y: auto; padding: 8px; }
#legend div { cursor: pointer; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
#legend .off { opacity: 0.3; }
#legend span { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 6px; }
canvas { position: absolute; left: 0; top: 36px; cursor: grab; }
#tip { position: absolute; display: none; padding: 6px; background: white; border: 1px solid #888; pointer-events: none;
  max-width: 260px; overflow-wrap: anywhere; }
#tip canvas { position: static; display: block; margin-bottom: 4px; image-rendering: pixelated; }
</style>
</head>
<body>
<div id="bar"><b>TITLE</b>
<label>embedding <select id="embedding"></select></label>
<label>colour <select id="color"><option value="labels">label</option><option value="predictions">prediction</option>
<option value="right">right or wrong</option></select></label>
<label><input type="checkbox" id="thumbnails"> thumbnails</label>
<label><input type="checkbox" id="mistakes"> only mistakes</label>
drag to move, turn the wheel to enlarge, double click to reset</div>
<canvas id="plot"></canvas><div id="legend"></div><div id="tip"></div>
<script>
const data = DATA;
const $ = id => document.getElementById(id), plot = $('plot'), tip = $('tip'), count = data.names.length;
const sprite = new Image();
let scale = 1, offset = [0, 0], drag = null, hidden = new Set(), hovered = -1;
for (const name of Object.keys(data.points)) $('embedding').add(new Option(name, name));
const isWrong = i => data.labels[i] >= 0 && data.labels[i] !== data.predictions[i];
function classOf(i) { return $('color').value === 'predictions' ? data.predictions[i] : data.labels[i]; }
function colorOf(i) {
  if ($('color').value === 'right') return data.labels[i] < 0 ? '#bbbbbb' : isWrong(i) ? '#d55e00' : '#88ccee';
  return classOf(i) < 0 ? '#bbbbbb' : data.colors[classOf(i)];
}
function isVisible(i) { return !hidden.has(classOf(i)) && (!$('mistakes').checked || isWrong(i)); }
function position(i) {
  const side = Math.min(plot.clientWidth, plot.clientHeight) - 60, p = data.points[$('embedding').value][i];
  return [plot.clientWidth / 2 + offset[0] + (p[0] - 0.5) * side * scale,
          plot.clientHeight / 2 + offset[1] - (p[1] - 0.5) * side * scale];
}
function thumbnail(context, i, x, y, width, height) {
  const column = i % data.columns, row = Math.floor(i / data.columns);
  context.drawImage(sprite, column * data.width, row * data.height, data.width, data.height, x, y, width, height);
}
function draw() {
  const ratio = window.devicePixelRatio || 1, context = plot.getContext('2d');
  const width = window.innerWidth - 206, height = window.innerHeight - 36;
  plot.width = width * ratio; plot.height = height * ratio;
  plot.style.width = width + 'px'; plot.style.height = height + 'px';
  context.scale(ratio, ratio);
  const size = Math.min(64, 18 * Math.sqrt(scale)), radius = Math.min(8, 3 + Math.sqrt(scale));
  for (let i = 0; i < count; i++) {
    if (!isVisible(i)) continue;
    const [x, y] = position(i);
    if (x < -64 || y < -64 || x > width + 64 || y > height + 64) continue;
    context.strokeStyle = context.fillStyle = colorOf(i);
    if ($('thumbnails').checked) {
      const height = size * data.height / data.width;
      thumbnail(context, i, x - size / 2, y - height / 2, size, height);
      context.lineWidth = 2;
      context.setLineDash(data.augmented[i] ? [3, 3] : []);
      context.strokeRect(x - size / 2, y - height / 2, size, height);
    } else if (data.augmented[i]) {
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(x - radius, y - radius); context.lineTo(x + radius, y + radius);
      context.moveTo(x - radius, y + radius); context.lineTo(x + radius, y - radius);
      context.stroke();
    } else {
      context.beginPath(); context.arc(x, y, radius, 0, 7); context.fill();
    }
    if (i === hovered) {
      context.setLineDash([]); context.strokeStyle = 'black'; context.lineWidth = 2;
      context.beginPath(); context.arc(x, y, radius + 4, 0, 7); context.stroke();
    }
  }
}
function drawLegend() {
  $('legend').textContent = '';
  const isRight = $('color').value === 'right';
  const entries = isRight ? [['#88ccee', 'right'], ['#d55e00', 'wrong']]
    : data.classes.map((name, c) => [data.colors[c], name]);
  entries.forEach(([color, name], c) => {
    const row = document.createElement('div'), dot = document.createElement('span');
    dot.style.background = color;
    row.append(dot, name);
    row.title = name;
    if (hidden.has(c)) row.className = 'off';
    if (!isRight) row.onclick = () => { hidden.has(c) ? hidden.delete(c) : hidden.add(c); drawLegend(); draw(); };
    $('legend').append(row);
  });
  if (data.augmented.length) $('legend').append('circles: images, crosses: augmented images');
}
function hover(event) {
  const box = plot.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let nearest = -1, best = 15 * 15;
  for (let i = 0; i < count; i++) {
    if (!isVisible(i)) continue;
    const [px, py] = position(i), distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance < best) { best = distance; nearest = i; }
  }
  if (nearest !== hovered) { hovered = nearest; draw(); }
  tip.style.display = nearest < 0 ? 'none' : 'block';
  if (nearest < 0) return;
  const picture = document.createElement('canvas');
  const factor = Math.max(1, Math.floor(160 / Math.max(data.width, data.height)));
  picture.width = data.width * factor; picture.height = data.height * factor;
  const context = picture.getContext('2d');
  context.imageSmoothingEnabled = false;
  thumbnail(context, nearest, 0, 0, picture.width, picture.height);
  tip.textContent = '';
  const label = data.labels[nearest];
  const lines = [data.names[nearest] + (data.augmented[nearest] ? ' (augmented)' : ''),
    'label: ' + (label < 0 ? 'unknown' : data.classes[label]),
    'prediction: ' + data.classes[data.predictions[nearest]] + ' (' + (100 * data.confidences[nearest]).toFixed(1) + ' %)'];
  tip.append(picture, ...lines.flatMap(line => [line, document.createElement('br')]));
  tip.style.left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8) + 'px';
  tip.style.top = Math.max(40, Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)) + 'px';
}
plot.onmousedown = event => { drag = [event.clientX - offset[0], event.clientY - offset[1]]; };
window.onmouseup = () => { drag = null; };
plot.onmousemove = event => {
  if (drag) { offset = [event.clientX - drag[0], event.clientY - drag[1]]; draw(); } else hover(event);
};
plot.onmouseleave = () => { tip.style.display = 'none'; };
plot.onwheel = event => {
  event.preventDefault();
  const factor = Math.exp(-event.deltaY / 500), box = plot.getBoundingClientRect();
  const x = event.clientX - box.left - plot.clientWidth / 2, y = event.clientY - box.top - plot.clientHeight / 2;
  const next = Math.max(0.5, Math.min(200, scale * factor));
  offset = [x - (x - offset[0]) * next / scale, y - (y - offset[1]) * next / scale];
  scale = next;
  draw();
};
plot.ondblclick = () => { scale = 1; offset = [0, 0]; draw(); };
for (const id of ['embedding', 'color', 'thumbnails', 'mistakes']) $(id).onchange = () => { drawLegend(); draw(); };
window.onresize = draw;
sprite.onload = draw;
sprite.src = data.sprite;
drawLegend();
draw();
</script>
</body>
</html>
'''
