// Tooltips of the figures: the values at the x value nearest to the pointer.
'use strict';
(() => {
  const tip = document.getElementById('tip');
  const withMinus = (text) => text.replace(/-/g, '\u2212');
  const format = (y, unit) => {
    const size = Math.abs(y);
    const text = size && (size < 1e-4 || size >= 1e6)
      ? y.toExponential(2)
      : Number(y.toPrecision(4)).toLocaleString('en', {maximumSignificantDigits: 4});
    return withMinus(text) + (unit ? '\u202f' + unit : '');
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] > x) high = middle; else low = middle;
    }
    return x - xs[low] <= xs[high] - x ? low : high;
  };
  const addElement = (name, attributes, parent) => {
    const added = document.createElementNS(parent.namespaceURI, name);
    for (const key in attributes) added.setAttribute(key, attributes[key]);
    parent.append(added);
    return added;
  };
  const attach = (frame) => {
    const data = JSON.parse(frame.querySelector('script').textContent);
    const svg = frame.querySelector('svg');
    const [x0, x1, left, right] = data.x;
    const [y0, y1, bottom, top, log] = data.y;
    const scale = log ? Math.log : (y) => y;
    const px = (x) => left + (x - x0) / (x1 - x0) * (right - left);
    const py = (y) => bottom + (scale(y) - scale(y0)) / (scale(y1) - scale(y0)) * (top - bottom);
    const layer = addElement('g', {}, svg);
    const hide = () => { layer.replaceChildren(); tip.hidden = true; };
    const show = (event) => {
      const box = svg.getBoundingClientRect();
      const unit = svg.viewBox.baseVal.width / box.width;
      const pointerX = x0 + ((event.clientX - box.left) * unit - left) / (right - left) * (x1 - x0);
      const all = data.series.map((series) => series.x[nearest(series.x, pointerX)]);
      const x = all.reduce((a, b) => Math.abs(b - pointerX) < Math.abs(a - pointerX) ? b : a);
      layer.replaceChildren();
      tip.replaceChildren();
      addElement('path', {class: 'cursor', d: `M${px(x)},${bottom}V${top}`}, layer);
      const title = document.createElement('b');
      title.textContent = `${data.label} ${format(x)}`;
      tip.append(title);
      for (const series of data.series) {
        const index = nearest(series.x, x);
        if (series.x[index] !== x) continue;
        const line = document.createElement('div');
        line.className = `c${series.color}`;
        line.textContent = `${series.name} ${format(series.y[index], data.unit)}`;
        tip.append(line);
        if (series.mark) addElement('circle', {class: `dot c${series.color}`, cx: px(x), cy: py(series.y[index]), r: 4}, layer);
      }
      tip.hidden = false;
      const at = box.left + px(x) / unit;
      const limit = document.documentElement.clientWidth - tip.offsetWidth - 8;
      const tipLeft = at + 14 > limit ? at - tip.offsetWidth - 14 : at + 14;
      tip.style.left = `${Math.max(8, Math.min(tipLeft, limit)) + scrollX}px`;
      tip.style.top = `${box.top + scrollY + 8}px`;
    };
    svg.addEventListener('pointermove', show);
    svg.addEventListener('pointerdown', show);
    svg.addEventListener('pointerleave', hide);
  };
  document.querySelectorAll('.frame:not(.still)').forEach(attach);
  addEventListener('beforeprint', () => {
    document.querySelectorAll('details').forEach((one) => { one.open = true; });
  });
})();
