"use strict";
// The page without this is the pictures, charts and tables; this adds the draws one by one, the wipe and the probe.
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const { width, height } = data;
  const CHANNELS = data.channels === 1 ? ["gray"] : ["red", "green", "blue"];
  const TINT = [230, 57, 155];
  // Of the tint where all is invented, so that what lies below it can be seen.
  const STRONGEST = 0.6;
  const PLAY_MS = 180;
  const state = { layer: "draws", draw: 0, against: "", wipe: 50, tint: "", from: 0.5, row: 0, column: 0, held: false, timer: 0 };

  // -- pictures and their values ----------------------------------------------------------------------------------

  const load = async (uri) => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    return image;
  };

  const canvasOf = (image) => {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, width, height);
    return canvas;
  };

  const valuesOf = (canvas) => canvas.getContext("2d").getImageData(0, 0, width, height).data;

  const draws = (await Promise.all(data.draws.map(load))).map(canvasOf);
  const layers = new Map();
  for (const { key, name, uri, of } of data.layers) {
    layers.set(key, { name, canvas: canvasOf(await load(uri || $(of).src)) });
  }
  const tints = new Map();
  for (const { key, name, uri } of data.tints) tints.set(key, { name, shares: valuesOf(canvasOf(await load(uri))) });
  // A point estimate has no draws: its values stand for them.
  const samples = (draws.length ? draws : [layers.get("mean").canvas]).map(valuesOf);
  const truth = layers.has("truth") ? valuesOf(layers.get("truth").canvas) : null;

  // Clear up to the share that is asked for, and from there on the stronger the more was invented.
  function tinted(shares, from) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    let above = 0;
    for (let i = 0; i < shares.length; i += 4) {
      const share = shares[i] / 255;
      if (share <= from) continue;
      above += 1;
      pixels.data.set([...TINT, (255 * STRONGEST * (share - from)) / (1 - from)], i);
    }
    context.putImageData(pixels, 0, 0);
    return [canvas, above / (width * height)];
  }

  const spread = draws.length > 1;
  if (!draws.length) state.layer = "mean";

  // -- the stage --------------------------------------------------------------------------------------------------

  const stage = $("stage");
  for (const id of ["base", "over", "tint"]) {
    $(id).width = width;
    $(id).height = height;
  }
  $("cross").setAttribute("viewBox", `0 0 ${width} ${height}`);

  const shown = (key) => (key === "draws" ? draws[state.draw] : layers.get(key).canvas);
  const nameOf = (key) => (key === "draws" ? `Draw ${data.numbers[state.draw]}` : layers.get(key).name);

  function paint(id, canvas) {
    const target = $(id);
    target.hidden = !canvas;
    if (!canvas) return;
    const context = target.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.drawImage(canvas, 0, 0);
  }

  function render() {
    paint("base", shown(state.layer));
    $("base").setAttribute("role", "img");
    $("base").setAttribute("aria-label", nameOf(state.layer));
    const other = state.against && state.against !== state.layer ? state.against : "";
    paint("over", other && shown(other));
    $("over").style.clipPath = `inset(0 0 0 ${state.wipe}%)`;
    $("handle").hidden = $("left-name").hidden = $("right-name").hidden = $("wipe-tool").hidden = !other;
    $("handle").style.left = `${state.wipe}%`;
    if (other) {
      $("left-name").textContent = nameOf(state.layer);
      $("right-name").textContent = nameOf(other);
    }
    $("bar").hidden = ![state.layer, other].some((key) => key === "std" || key === "error");
    $("slider").value = state.draw;
    $("slider").setAttribute("aria-valuetext", `Draw ${data.numbers[state.draw]}`);
    $("number").textContent = draws.length ? `${nameOf("draws")} (${state.draw + 1} of ${draws.length})` : "";
    for (const input of $("layers").querySelectorAll("input")) input.checked = input.value === state.layer;
  }

  function tint() {
    const [canvas, above] = state.tint ? tinted(tints.get(state.tint).shares, state.from) : [null, 0];
    paint("tint", canvas);
    $("key").hidden = $("from-tool").hidden = !canvas;
    $("key").style.setProperty("--from", `${100 * state.from}%`);
    $("above").textContent = `${Math.round(100 * state.from)} % (${Math.round(100 * above)} % of the pixels)`;
  }

  // Whole device pixels for every pixel, as wide as there is room.
  function fit(element, natural, room) {
    const ratio = window.devicePixelRatio || 1;
    const times = Math.floor((room * ratio) / natural);
    element.style.width = times ? `${(times * natural) / ratio}px` : "";
    return times > 0;
  }

  function layOut() {
    stage.style.width = "";
    stage.classList.toggle("smooth", !fit(stage, width, Math.min(stage.parentElement.clientWidth, 640)));
    stage.parentElement.style.setProperty("--stage", `${stage.clientWidth}px`);
    // All pictures as wide as the mean, so that they can be compared.
    const frames = [...document.querySelectorAll(".sheet .picture")];
    for (const frame of frames) frame.style.width = "";
    const mean = $("sheet-mean");
    const crisp = fit(mean.parentElement, mean.naturalWidth, mean.closest("figure").clientWidth);
    for (const frame of frames) {
      frame.style.width = mean.parentElement.style.width;
      frame.firstElementChild.classList.toggle("pixels", crisp);
    }
  }

  // -- the probe --------------------------------------------------------------------------------------------------

  const scaled = (byte) => data.low + ((data.high - data.low) * byte) / 255;
  const digits = (value) => value.toFixed(3);

  // Position (K + 1) q of the sorted values, linear in between, as Posterior.quantile has it.
  function quantile(sorted, q) {
    const place = (sorted.length + 1) * q - 1;
    const below = Math.floor(place + 1e-9);
    const share = Math.max(0, place - below);
    return sorted[below] + (share ? share * (sorted[below + 1] - sorted[below]) : 0);
  }

  function statistics(channel) {
    const at = 4 * (state.row * width + state.column) + channel;
    const values = samples.map((pixels) => scaled(pixels[at]));
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const found = { values, mean, truth: truth && scaled(truth[at]) };
    if (values.length > 1) {
      const squares = values.reduce((a, b) => a + (b - mean) ** 2, 0);
      found.std = data.scale * Math.sqrt(squares / (values.length - 1));
    }
    if (values.length >= 19) {
      const sorted = [...values].sort((a, b) => a - b);
      found.interval = [0.05, 0.95].map((q) => mean + data.scale * (quantile(sorted, q) - mean));
    }
    return found;
  }

  function svg(name, attributes, words = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = words;
    return element;
  }

  // The values that all channels share an axis of: round ends, at least four grey levels apart.
  function span(found) {
    const all = found.flatMap((one) => [...one.values, ...(one.interval || []), ...(one.truth === null ? [] : [one.truth])]);
    const step = (data.high - data.low) / 255;
    const least = Math.min(...all) - step;
    const most = Math.max(Math.max(...all) + step, least + 4 * step);
    return [least, most];
  }

  function histogram(one, channel, [low, high], last) {
    const plot = svg("svg", { viewBox: `0 0 360 ${last ? 96 : 80}`, class: CHANNELS.length > 1 ? `c${channel}` : "", role: "img" });
    plot.setAttribute("aria-label", `Histogram of ${one.values.length} draws, ${CHANNELS[channel]}`);
    const x = (value) => 4 + (352 * (value - low)) / (high - low);
    const levels = Math.round(((high - low) / (data.high - data.low)) * 255);
    const bins = Math.min(24, levels + 1);
    const counts = new Array(bins).fill(0);
    for (const value of one.values) counts[Math.min(bins - 1, Math.floor((bins * (value - low)) / (high - low)))] += 1;
    if (one.interval) {
      const [a, b] = one.interval.map(x);
      plot.append(svg("rect", { class: "interval", x: a, y: 67, width: Math.max(1, b - a), height: 3 }));
    }
    const most = Math.max(...counts, 3);
    counts.forEach((count, bin) => {
      const size = (56 * count) / most;
      if (count) plot.append(svg("rect", { class: "count", x: 4 + (352 * bin) / bins + 0.5, y: 64 - size, width: 352 / bins - 1, height: size }));
    });
    plot.append(svg("line", { class: "axis", x1: 4, y1: 64.5, x2: 356, y2: 64.5 }));
    plot.append(svg("line", { class: "mean-line", x1: x(one.mean), y1: 6, x2: x(one.mean), y2: 64 }));
    if (one.truth !== null) {
      const at = x(one.truth);
      plot.append(svg("path", { class: "truth-mark", d: `M${at - 5} 0h10l-5 9z` }));
    }
    if (last) {
      plot.append(svg("text", { x: 4, y: 88 }, digits(low)), svg("text", { x: 356, y: 88, "text-anchor": "end" }, digits(high)));
    }
    return plot;
  }

  function row(cells, tag = "td") {
    const line = document.createElement("tr");
    cells.forEach((words, index) => {
      const cell = document.createElement(index ? tag : "th");
      if (tag === "th" || !index) cell.scope = tag === "th" ? "col" : "row";
      cell.textContent = words;
      line.append(cell);
    });
    return line;
  }

  function probe(say = true) {
    const mark = [...$("cross").children];
    for (const rect of mark) {
      for (const [key, value] of Object.entries({ x: state.column, y: state.row, width: 1, height: 1 })) rect.setAttribute(key, value);
    }
    $("place").textContent = `row ${state.row + data.top}, column ${state.column + data.left}`;
    const found = CHANNELS.map((_, channel) => statistics(channel));
    const range = span(found);
    const plots = spread ? found.map((one, channel) => histogram(one, channel, range, channel === found.length - 1)) : [];
    $("plots").replaceChildren(...plots);
    const heads = ["channel", spread ? "mean" : "value", ...(spread ? ["std"] : []), ...(found[0].interval ? ["90 %"] : []), ...(truth ? ["truth"] : [])];
    const rows = found.map((one, channel) => [
      CHANNELS[channel],
      digits(one.mean),
      ...(spread ? [digits(one.std)] : []),
      ...(one.interval ? [one.interval.map(digits).join(" – ")] : []),
      ...(truth ? [digits(one.truth)] : []),
    ]);
    $("values").tHead.replaceChildren(row(heads, "th"));
    $("values").tBodies[0].replaceChildren(...rows.map((cells) => row(cells)));
    if (say) {
      const words = rows.map((cells) => cells.map((words, index) => (index ? `${heads[index]} ${words}` : words)).join(", "));
      $("said").textContent = `${$("place").textContent}: ${words.join("; ")}`;
    }
  }

  function moveTo(row, column, say = true) {
    state.row = Math.min(height - 1, Math.max(0, row));
    state.column = Math.min(width - 1, Math.max(0, column));
    $("held").hidden = !state.held;
    probe(say);
  }

  // -- controls ---------------------------------------------------------------------------------------------------

  function show(draw) {
    state.draw = (draw + draws.length) % draws.length;
    state.layer = "draws";
    render();
  }

  // With reduced motion the draws change at half the pace, and only when asked to.
  const pace = window.matchMedia("(prefers-reduced-motion: reduce)").matches ? 4 * PLAY_MS : PLAY_MS;

  function play(on) {
    clearInterval(state.timer);
    state.timer = on ? setInterval(() => show(state.draw + 1), pace) : 0;
    $("play").setAttribute("aria-pressed", String(on));
    $("play").setAttribute("aria-label", on ? "Stop the draws" : "Play the draws");
  }

  function option(value, words) {
    const element = document.createElement("option");
    element.value = value;
    element.textContent = words;
    return element;
  }

  const choices = [...(draws.length ? [["draws", spread ? "Draws" : "Draw"]] : []), ...[...layers].map(([key, { name }]) => [key, name])];
  for (const [key, name] of choices) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    const words = document.createElement("span");
    Object.assign(input, { type: "radio", name: "layer", value: key });
    words.textContent = name;
    label.append(input, words);
    $("layers").append(label);
    input.addEventListener("change", () => {
      play(false);
      state.layer = key;
      render();
    });
  }
  $("against").append(option("", "nothing"), ...choices.map(([key, name]) => option(key, key === "draws" ? "the draw" : name.toLowerCase())));
  $("against").addEventListener("change", (event) => {
    state.against = event.target.value;
    render();
  });
  $("tints").append(option("", "hidden"), ...[...tints].map(([key, { name }]) => option(key, name)));
  $("tint-tool").hidden = !tints.size;
  $("tints").addEventListener("change", (event) => {
    state.tint = event.target.value;
    tint();
  });
  $("from").addEventListener("input", (event) => {
    state.from = Number(event.target.value) / 100;
    tint();
  });
  state.from = Number($("from").value) / 100;
  $("slider").max = Math.max(0, draws.length - 1);
  $("slider").addEventListener("input", (event) => {
    play(false);
    show(Number(event.target.value));
  });
  $("play").addEventListener("click", () => play(!state.timer));
  const wipeTo = (share) => {
    state.wipe = Math.min(100, Math.max(0, share));
    $("wipe").value = state.wipe;
    render();
  };
  $("wipe").addEventListener("input", (event) => wipeTo(Number(event.target.value)));

  const place = (event) => {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const pixelAt = (event) => {
    const [x, y] = place(event);
    return [Math.floor(y * height), Math.floor(x * width)];
  };
  $("handle").addEventListener("pointerdown", (event) => {
    $("handle").setPointerCapture(event.pointerId);
    event.preventDefault();
    event.stopPropagation();
  });
  $("handle").addEventListener("pointermove", (event) => {
    if ($("handle").hasPointerCapture(event.pointerId)) wipeTo(100 * place(event)[0]);
  });
  stage.addEventListener("pointerdown", (event) => {
    // The other buttons are the browser's, for its menu. A mouse or pen holds the probe, and lets it go again; a finger
    // puts it down.
    if (event.button) return;
    state.held = event.pointerType !== "touch" && !state.held;
    moveTo(...pixelAt(event));
  });
  // Not said aloud, as it would never end.
  stage.addEventListener("pointermove", (event) => {
    if (state.held || event.pointerType === "touch" || event.target.closest("#handle")) return;
    moveTo(...pixelAt(event), false);
  });
  stage.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 : 1;
    const step = { ArrowUp: [-far, 0], ArrowDown: [far, 0], ArrowLeft: [0, -far], ArrowRight: [0, far] }[event.key];
    if (!step) return;
    event.preventDefault();
    state.held = true;
    moveTo(state.row + step[0], state.column + step[1]);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || !spread || event.target.closest("button, select, summary, pre, input[type=radio]")) return;
    event.preventDefault();
    if (!event.repeat) play(!state.timer);
  });
  window.addEventListener("resize", layOut);

  // -- begin ------------------------------------------------------------------------------------------------------

  $("explore").hidden = false;
  state.row = data.row;
  state.column = data.column;
  layOut();
  render();
  probe(false);
  document.documentElement.dataset.ready = "yes";
})();
