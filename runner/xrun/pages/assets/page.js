"use strict";
// The page: a list of runs, one run, or a sweep, by what stands behind the # of the address.
// Texts of runs become text nodes and attributes, never markup.
(() => {
  const index = JSON.parse(document.getElementById("index").textContent);
  const app = document.getElementById("app");
  const state = { x: "step", log: false, smooth: 0, words: "", status: "", chosen: null };
  const COLOURS = 10;
  const SHOWN_AT_FIRST = 5;

  // ---- Small things ----

  function h(tag, props, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "vars") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((each) => each !== null && each !== undefined && each !== ""));
    return node;
  }

  const SVG = "http://www.w3.org/2000/svg";
  function svg(tag, props, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(props || {})) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e7 || size < 1e-4)) return value.toExponential(2);
    return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
  }

  // Numbers beside an axis, with as many digits as tell each from the next.
  function tickTexts(values) {
    const known = values.filter((each) => each !== null);
    const steps = known.slice(1).map((each, n) => Math.abs(each - known[n])).filter((each) => each > 0);
    const digits = steps.length ? Math.min(12, Math.max(0, 1 - Math.floor(Math.log10(Math.min(...steps))))) : 4;
    return values.map((each) => {
      if (each === null) return "";
      const size = Math.abs(each);
      if (size !== 0 && (size >= 1e7 || size < 1e-4)) return Number(each.toPrecision(9)).toExponential();
      return each.toLocaleString("en-US", { maximumFractionDigits: digits });
    });
  }

  function duration(seconds) {
    if (seconds < 100) return `${Math.max(0, seconds).toFixed(seconds < 10 && seconds % 1 ? 1 : 0)} s`;
    if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
    if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
    return `${Math.round(seconds / 86400)} days`;
  }

  const money = (usd) => (usd > 0 && usd < 0.1 ? `$${usd.toFixed(4)}` : `$${usd.toFixed(2)}`);
  const some = (count, what) => `${count.toLocaleString("en-US")} ${what}${count === 1 ? "" : "s"}`;
  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const rowOf = (run) => index.runs.find((each) => each.run === run);
  const pageOf = (run) => `#run/${encodeURIComponent(run)}`;

  const spoken = h("div", { class: "unseen", "aria-live": "polite" });
  const say = (text) => { spoken.textContent = text; };

  // ---- A run's sheet: in the file, or asked for ----

  const sheets = new Map();
  const parsed = new Promise((done) => {
    if (document.readyState !== "loading") done();
    else document.addEventListener("DOMContentLoaded", () => done());
  });

  async function sheetOf(run) {
    const version = rowOf(run).version;
    const known = sheets.get(run);
    if (known && known.version === version) return known.sheet;
    let sheet;
    if (index.live) {
      const answer = await fetch(`run/${encodeURIComponent(run)}`);
      if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
      sheet = await answer.json();
    } else {
      await parsed;
      sheet = JSON.parse(document.getElementById(`run-${index.runs.indexOf(rowOf(run))}`).textContent);
    }
    sheets.set(run, { version, sheet });
    return sheet;
  }

  // ---- What is drawn from left to right: steps, seconds, dollars ----

  function timesAt(clock, steps) {
    const { x, t } = clock;
    let place = 0;
    return steps.map((step) => {
      while (place < x.length - 2 && x[place + 1] < step) place++;
      if (x.length === 1 || step <= x[place]) return t[place];
      if (step >= x[place + 1]) return t[place + 1];
      return t[place] + ((t[place + 1] - t[place]) * (step - x[place])) / (x[place + 1] - x[place]);
    });
  }

  const beginOf = (sheet) => (sheet.attempts.length ? Math.min(sheet.attempts[0].began, sheet.clock.t[0] ?? Infinity) : sheet.clock.t[0]);

  function dollarsAt(attempts, times) {
    let place = 0;
    let most = 0;
    return times.map((time) => {
      while (place < attempts.length - 1 && attempts[place + 1].began <= time) place++;
      const { began, ended, paid, usd } = attempts[place];
      const share = ended > began ? Math.min(1, Math.max(0, (time - began) / (ended - began))) : 1;
      most = Math.max(most, paid + usd * share);
      return most;
    });
  }

  function placesOf(sheet, steps, kind) {
    if (kind === "step") return steps;
    const times = timesAt(sheet.clock, steps);
    if (kind === "usd") return dollarsAt(sheet.attempts, times);
    const begin = beginOf(sheet);
    return times.map((time) => time - begin);
  }

  // Between two attempts nothing was trained: by time and dollars a line ends there and begins anew.
  function broken(line, sheet, steps, kind) {
    if (kind === "step" || sheet.attempts.length < 2) return line;
    const times = timesAt(sheet.clock, steps);
    const [x, y] = [[], []];
    let next = 1;
    line.x.forEach((place, n) => {
      let waited = false;
      while (next < sheet.attempts.length && sheet.attempts[next].began <= times[n]) { next++; waited = true; }
      const before = x[x.length - 1];
      if (waited && before < place) { x.push((before + place) / 2); y.push(null); }
      x.push(place);
      y.push(line.y[n]);
    });
    return { ...line, x, y };
  }

  const paidFor = (sheet) => sheet.attempts.some((each) => each.usd > 0);
  const KINDS = [
    ["step", "Steps", () => true],
    ["time", "Time", (sheet) => sheet.clock.x.length > 1],
    ["usd", "Dollars", (sheet) => sheet.clock.x.length > 1 && paidFor(sheet)],
  ];
  const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000, 2592000];

  function axisText(kind, values) {
    if (kind === "usd") return values.map((each) => (each === null ? "" : `$${number(each)}`));
    if (kind === "step") return values.map((each) => (each === null ? "" : each >= 10000 ? `${number(each / 1000)}k` : number(each)));
    const last = values[values.length - 1];
    const [unit, name] = last < 120 ? [1, "s"] : last < 7200 ? [60, "min"] : last < 172800 ? [3600, "h"] : [86400, "d"];
    return values.map((each) => (each === null ? "" : `${number(each / unit)} ${name}`));
  }

  const placeText = (kind, value) => (kind === "usd" ? money(value) : kind === "time" ? `after ${duration(value)}` : `step ${number(value)}`);

  // ---- A chart ----

  function smoothed(values, share) {
    if (!share) return values;
    let mean = null;
    return values.map((each) => {
      if (each === null || each === undefined) return each;
      mean = mean === null ? each : share * mean + (1 - share) * each;
      return mean;
    });
  }

  const sameSteps = (one, other) => one === other || (one.length === other.length && one.every((each, n) => each === other[n]));
  const charts = new Set();

  function chart(title, group) {
    const host = h("div", { class: "plot", tabindex: "0", role: "img" });
    const legend = h("ul", { class: "legend" });
    const note = h("p", { class: "note" });
    const node = h("figure", { class: "chart" }, h("figcaption", {}, title), host, legend, note);
    const hidden = new Set();
    let plot = null;
    let lines = [];
    let chips = [];
    let wanted = false;
    let stale = false;

    const log = () => state.log && !Object.values(TITLES).includes(title);  // not of what tells of the machine
    const colour = (line) => theme(`--c${line.colour % COLOURS}`);
    const drawn = (line) => {
      const values = smoothed(line.y, state.smooth);
      return log() ? values.map((each) => (each > 0 ? each : null)) : values;
    };

    function data() {
      if (!lines.length) return [[], []];
      if (lines.every((each) => sameSteps(each.x, lines[0].x))) return [lines[0].x, ...lines.map(drawn)];
      // A line breaks at its own nulls, as far as its own next point, whatever the other lines have between.
      return uPlot.join(lines.map((each) => [each.x, drawn(each)]), lines.map(() => [0, 2]));
    }

    function valueAt(values, place) {
      // Lines have points of their own; one that has none here is where its last one was.
      for (let n = place; n >= 0; n--) if (values[n] !== undefined && values[n] !== null) return values[n];
      return null;
    }

    function tell(place) {
      const [xs, ...rows] = plot.data;
      const at = place === null || place === undefined ? xs.length - 1 : place;
      chips.forEach((chip, n) => { chip.value.textContent = xs.length ? number(valueAt(rows[n], at)) : ""; });
      node.querySelector("figcaption").textContent = place === null || place === undefined ? title : `${title}, ${placeText(group.kind(), xs[at])}`;
      return at;
    }

    function marks(u) {
      const { ctx, bbox } = u;
      ctx.save();
      ctx.strokeStyle = theme("--mark");
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      for (const each of group.marks()) {
        const x = u.valToPos(each, "x", true);
        if (x > bbox.left && x < bbox.left + bbox.width) { ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); }
      }
      ctx.stroke();
      ctx.restore();
    }

    // All charts of a panel begin and end at the same place, until somebody zooms.
    function whole(u, min, max) {
      const xs = u.data[0];
      return !xs.length || (min <= xs[0] && max >= xs[xs.length - 1]) ? group.full() : [min, max];
    }

    function build() {
      if (plot) plot.destroy();
      plot = null;
      stale = false;
      const kind = group.kind();
      const width = Math.max(200, host.clientWidth);
      const found = data();
      const stroke = () => theme("--soft");
      const grid = { stroke: () => theme("--grid"), width: 1 };
      plot = new uPlot({
        width,
        height: 210,
        padding: [8, 10, 0, 0],
        legend: { show: false },
        cursor: { sync: { key: group.key }, drag: { x: true, y: false, dist: 6 }, points: { size: 7 } },
        scales: { x: { time: false, range: whole }, y: { distr: log() ? 3 : 1 } },
        axes: [
          { stroke, grid, ticks: grid, size: 34, font: "11px system-ui", space: 70, incrs: kind === "time" ? SECONDS : undefined, values: (u, all) => axisText(kind, all) },
          { stroke, grid, ticks: grid, size: (u, all) => 14 + 7 * Math.max(4, ...(all || []).map((each) => each.length)), font: "11px system-ui", values: (u, all) => tickTexts(all) },
        ],
        series: [{}, ...lines.map((line) => ({
          label: line.label,
          stroke: () => colour(line),
          width: line.dash ? 2 : 1.5,
          dash: line.dash ? [6, 3] : undefined,
          show: !hidden.has(line.label),
          points: { show: line.shown < 40, size: 5, stroke: () => colour(line), fill: () => colour(line) },
        }))],
        hooks: { drawAxes: [marks], setCursor: [(u) => tell(u.cursor.idx)] },
      }, found, host);
      legend.replaceChildren();
      chips = lines.map((line, n) => {
        const value = h("span", { class: "value" });
        const button = h("button", { type: "button", "aria-pressed": String(!hidden.has(line.label)), title: "Show or hide", onclick: () => {
          const show = hidden.has(line.label);
          if (show) hidden.delete(line.label); else hidden.add(line.label);
          button.setAttribute("aria-pressed", String(show));
          plot.setSeries(n + 1, { show });
        } }, h("i", { class: line.dash ? "dash" : "", vars: { "--own": `var(--c${line.colour % COLOURS})` } }), line.label, line.about ? h("small", {}, line.about) : null, value);
        legend.append(h("li", {}, button));
        return { value };
      });
      tell(null);
    }

    function describe() {
      const parts = lines.slice(0, 6).map((line) => {
        const known = line.y.filter((each) => each !== null);
        if (!known.length) return `${line.label}: no numbers`;
        let least = Infinity, most = -Infinity;
        for (const each of known) { if (each < least) least = each; if (each > most) most = each; }
        return `${line.label}: last ${number(known[known.length - 1])}, from ${number(least)} to ${number(most)}`;
      });
      host.setAttribute("aria-label", `${title}. ${parts.join("; ")}. Arrow keys read values, plus and minus zoom, 0 shows all.`);
      const cut = lines.filter((each) => each.of);
      const [shown, of] = cut.reduce(([a, b], each) => [a + each.shown, b + each.of], [0, 0]);
      note.textContent = cut.length ? `${shown.toLocaleString("en-US")} of ${of.toLocaleString("en-US")} points: the least and the greatest of each stretch` : "";
    }

    host.addEventListener("keydown", (event) => {
      if (!plot || !plot.data[0].length || event.ctrlKey || event.metaKey || event.altKey) return;
      const xs = plot.data[0];
      const { min, max } = plot.scales.x;
      let place = plot.cursor.idx;
      const by = event.shiftKey ? Math.max(1, Math.round(xs.length / 20)) : 1;
      if (event.key === "ArrowLeft") place = (place ?? xs.length) - by;
      else if (event.key === "ArrowRight") place = (place ?? -1) + by;
      else if (event.key === "Home") place = 0;
      else if (event.key === "End") place = xs.length - 1;
      else if (event.key === "+" || event.key === "=" || event.key === "-") {
        const middle = place === null || place === undefined ? (min + max) / 2 : xs[place];
        const full = group.full();
        const half = ((max - min) / 2) * (event.key === "-" ? 2 : 0.5);
        zoom(Math.max(full[0], middle - half), Math.min(full[1], middle + half));
        event.preventDefault();
        return;
      } else if (event.key === "0" || event.key === "Escape") { zoom(...group.full()); return; } else return;
      event.preventDefault();
      const back = event.key === "ArrowLeft" || event.key === "End" ? -1 : 1;
      while (xs[place] !== undefined && plot.data.slice(1).every((row) => row[place] === null || row[place] === undefined)) place += back;  // the middle of a wait
      place = Math.min(xs.length - 1, Math.max(0, place));
      if (xs[place] < min || xs[place] > max) zoom(xs[place] - (max - min) / 2, xs[place] + (max - min) / 2);
      plot.setCursor({ left: plot.valToPos(xs[place], "x"), top: plot.over.clientHeight / 2 });
      tell(place);
      say(`${placeText(group.kind(), xs[place])}: ${lines.slice(0, 8).map((line, n) => `${line.label} ${number(valueAt(plot.data[n + 1], place))}`).join(", ")}`);
    });

    function zoom(min, max) {
      if (!(max > min)) return;
      for (const other of charts) if (other.group === group) other.zoom(min, max);
    }

    const seen = new IntersectionObserver((entries) => {
      wanted = entries.some((each) => each.isIntersecting);
      if (wanted && (!plot || stale)) build();
    }, { rootMargin: "300px" });
    const sized = new ResizeObserver(() => {
      if (plot && host.clientWidth && Math.abs(plot.width - host.clientWidth) > 1) plot.setSize({ width: Math.max(200, host.clientWidth), height: 210 });
    });
    seen.observe(host);
    sized.observe(host);

    const self = {
      node,
      group,
      show(next, fresh) {
        const same = plot && !fresh && next.length === lines.length && next.every((each, n) => each.label === lines[n].label);
        lines = next;
        describe();
        if (same) {
          const xs = plot.data[0];
          const { min, max } = plot.scales.x;
          const all = !xs.length || (min <= xs[0] && max >= xs[xs.length - 1]);
          plot.setData(data(), all);
          if (!all) plot.setScale("x", { min, max });
          tell(null);
        } else if (wanted) build(); else stale = true;
      },
      zoom(min, max) { if (plot) plot.setScale("x", { min, max }); },
      redraw() { if (plot) plot.redraw(false, true); },
      gone() { if (plot) plot.destroy(); seen.disconnect(); sized.disconnect(); charts.delete(self); },
    };
    charts.add(self);
    return self;
  }

  // ---- Charts of some runs, one for each metric ----

  const TITLES = {
    "speed/samples_per_second": "samples per second", "speed/tokens_per_second": "tokens per second",
    "speed/step_seconds": "seconds per step", "speed/data_wait_seconds": "seconds per step, waiting for data",
    "speed/memory_gib": "memory, GiB", "speed/mfu": "MFU", "speed/gpu_utilization": "GPU, %",
  };
  const ORDER = ["loss", "accuracy", "perplexity"];
  const titleOf = (name) => (/^(train|val)\//.test(name) ? name.replace(/^(train|val)\//, "") : TITLES[name] || name);

  function ordered(names) {
    const rank = (title) => (ORDER.includes(title) ? ORDER.indexOf(title) : Object.values(TITLES).includes(title) ? 50 + Object.values(TITLES).indexOf(title) : title === "lr" ? 40 : 10);
    return [...new Set(names.map(titleOf))].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
  }

  // What tells a run from the others of its recipe, where that is short.
  const about = (run) => { const { differs } = rowOf(run); return differs.length <= 32 ? differs : ""; };

  function panel() {
    const group = { key: `group-${Math.random()}`, kind: () => kind, marks: () => marks, full: () => full };
    const grid = h("div", { class: "charts" });
    const own = new Map();
    let kind = "step";
    let marks = [];
    let full = [0, 1];
    let shown = [];

    function draw(fresh) {
      const able = KINDS.filter(([, , fits]) => shown.length && shown.every(({ sheet }) => fits(sheet))).map(([name]) => name);
      kind = able.includes(state.x) ? state.x : "step";
      marks = shown.length === 1 ? shown[0].sheet.attempts.slice(1).map((each) => placeOfAttempt(shown[0].sheet, each, kind)[0]) : [];
      const titles = ordered(shown.flatMap(({ sheet }) => Object.keys(sheet.series)));
      for (const [title, each] of own) if (!titles.includes(title)) { each.gone(); each.node.remove(); own.delete(title); }
      const drawn = new Map(titles.map((title) => [title, []]));
      full = [Infinity, -Infinity];
      for (const { run, sheet, colour } of shown) {
        for (const name of Object.keys(sheet.series).sort()) {
          const { x, y, of } = sheet.series[name];
          const places = placesOf(sheet, x, kind);
          const val = name.startsWith("val/");
          const many = shown.length > 1;
          full = [Math.min(full[0], places[0]), Math.max(full[1], places[places.length - 1])];
          const line = { label: many ? `${run}${val ? ", val" : ""}` : name, about: many ? about(run) : "", colour: many ? colour : val ? 1 : 0, dash: many && val, x: places, y, shown: places.length, of };
          drawn.get(titleOf(name)).push(broken(line, sheet, x, kind));
        }
      }
      if (!(full[1] > full[0])) full = shown.length && Number.isFinite(full[0]) ? [full[0] - 0.5, full[0] + 0.5] : [0, 1];
      for (const [title, lines] of drawn) {
        if (!own.has(title)) { const made = chart(title, group); own.set(title, made); grid.append(made.node); }
        own.get(title).show(lines, fresh);
      }
      return able;
    }

    return {
      node: grid,
      kind: () => kind,
      show(next, fresh) { shown = next; return draw(fresh); },
      again() { return draw(true); },
      gone() { for (const each of own.values()) each.gone(); },
    };
  }

  function toolbar(change) {
    const radios = KINDS.map(([name, label]) => {
      const input = h("input", { type: "radio", name: "x", value: name, checked: state.x === name, onchange: () => { state.x = name; change(); } });
      return { name, input, node: h("label", {}, input, label) };
    });
    const log = h("input", { type: "checkbox", checked: state.log, onchange: () => { state.log = log.checked; change(); } });
    const smooth = h("input", { type: "range", min: "0", max: "0.98", step: "0.02", value: String(state.smooth), "aria-label": "Smoothing", oninput: () => { state.smooth = Number(smooth.value); change(); } });
    return {
      node: h("div", { class: "toolbar" },
        h("fieldset", {}, h("legend", {}, "Over"), radios.map((each) => each.node)),
        h("label", {}, log, "log scale"),
        h("label", {}, "smooth", smooth),
        h("span", { class: "hint" }, "Drag to zoom, double-click for all.")),
      able(names, kind) {
        for (const { name, input, node } of radios) {
          input.disabled = !names.includes(name);
          input.checked = name === kind;
          node.title = input.disabled ? (name === "usd" ? "Nothing of this was rented, or no price is known." : "Not known of all of these runs.") : "";
        }
      },
    };
  }

  // ---- A table that is sorted by its heads ----

  function table(columns, caption) {
    const sort = { key: "", down: false };
    const body = h("tbody");
    let rows = [];
    let each = (row, tr) => tr;
    const heads = columns.map((column) => {
      const th = h("th", { scope: "col", class: [column.right ? "right" : "", column.wide ? "wide" : ""].join(" ") },
        column.value ? h("button", { type: "button", onclick: () => {
          sort.down = sort.key === column.key ? !sort.down : Boolean(column.down);
          sort.key = column.key;
          draw();
        } }, column.label) : column.label);
      return th;
    });
    function draw() {
      const column = columns.find((one) => one.key === sort.key);
      const sorted = [...rows];
      if (column) {
        const value = (row) => column.value(row);
        sorted.sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          const [no, not] = [x === null || x === undefined || x === "", y === null || y === undefined || y === ""];
          if (no || not) return no - not; // what is not known comes last, whichever way
          return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1);
        });
      }
      columns.forEach((one, n) => {
        if (one.value) heads[n].setAttribute("aria-sort", one.key === sort.key ? (sort.down ? "descending" : "ascending") : "none");
      });
      const focused = document.activeElement && body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
      body.replaceChildren(...sorted.map((row) => each(row, h("tr", {}, columns.map((one) => h("td", { class: [one.right ? "right" : "", one.wide ? "wide" : "", one.class || ""].join(" ") }, one.cell(row)))))));
      if (focused) { const again = body.querySelector(`[data-key="${CSS.escape(focused)}"]`); if (again) again.focus(); }
    }
    return {
      node: h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, h("tr", {}, heads)), body)),
      show(next, decorate) { rows = next; if (decorate) each = decorate; draw(); },
      order: () => [...body.children],
    };
  }

  const pill = (status) => h("span", { class: `pill is-${/^[a-z_]+$/.test(status.toLowerCase()) ? status.toLowerCase() : "other"}` }, status);
  const ago = (seen) => (seen ? `${duration(index.made - seen)} ago` : "–");

  // ---- The list ----

  function chooser(rows, changed) {
    // Each chosen run keeps its colour while others come and go.
    const colours = new Map();
    if (state.chosen === null) state.chosen = new Set(rows.filter((row) => !row.error).slice(0, SHOWN_AT_FIRST).map((row) => row.run));
    const box = (row) => {
      const input = h("input", { type: "checkbox", "aria-label": `Draw ${row.run}`, "data-key": `box ${row.run}`, checked: state.chosen.has(row.run), disabled: Boolean(row.error), onchange: () => {
        if (input.checked) state.chosen.add(row.run); else state.chosen.delete(row.run);
        paint();
        changed();
      } });
      const mark = h("i", { class: "swatch", "data-run": row.run });
      return [input, mark];
    };
    function paint() {
      for (const run of [...colours.keys()]) if (!state.chosen.has(run)) colours.delete(run);
      for (const run of state.chosen) {
        let free = 0;
        while ([...colours.values()].includes(free) && free < COLOURS - 1) free++;
        if (!colours.has(run)) colours.set(run, colours.size < COLOURS ? free : colours.size);
      }
      for (const mark of document.querySelectorAll(".swatch")) {
        const own = colours.get(mark.dataset.run);
        mark.classList.toggle("on", own !== undefined);
        if (own !== undefined) mark.style.setProperty("--own", `var(--c${own % COLOURS})`);
      }
    }
    return { box, paint, colour: (run) => colours.get(run) ?? 0 };
  }

  function over(pick) {
    // Charts of the chosen runs, as their sheets come.
    const charted = panel();
    const bar = toolbar(() => able(charted.again()));
    const title = h("h2", {});
    const able = (names) => bar.able(names, charted.kind());
    let turn = 0;
    let before = [];
    async function show() {
      const own = ++turn;
      const chosen = [...state.chosen].filter(rowOf);
      title.textContent = chosen.length ? `Curves of ${some(chosen.length, "run")}` : "Choose runs to see their curves";
      const found = await Promise.allSettled(chosen.map(async (run) => ({ run, sheet: await sheetOf(run), colour: pick.colour(run) })));
      const shown = found.filter((each) => each.status === "fulfilled").map((each) => each.value);
      const same = shown.length === before.length && shown.every((each, n) => each.sheet === before[n].sheet && each.colour === before[n].colour);
      if (own !== turn || (same && shown.length)) return;
      before = shown;
      able(charted.show(shown));
    }
    return { node: h("section", { class: "over" }, title, bar.node, charted.node), show, gone: () => charted.gone() };
  }

  function listView() {
    let curves = null;
    const pick = chooser(index.runs, () => curves.show());
    curves = over(pick);
    const filter = h("input", { type: "search", id: "filter", placeholder: "lr=0.01 running ...", "aria-label": "Filter runs", value: state.words, oninput: () => { state.words = filter.value; draw(); } });
    const status = h("select", { "aria-label": "Status", onchange: () => { state.status = status.value; draw(); } });
    const count = h("p", { class: "count", role: "status" });
    const losses = (row) => row.losses["val/loss"] ?? row.losses["train/loss"] ?? null;
    const rented = index.runs.some((row) => !row.own && !row.error);
    const runs = table([
      { key: "draw", label: h("span", { class: "unseen" }, "Draw"), cell: pick.box, class: "boxes" },
      { key: "run", label: "Run", value: (row) => row.run, cell: (row) => h("a", { href: pageOf(row.run), "data-key": row.run }, row.run), class: "name" },
      { key: "status", label: "Status", value: (row) => row.status, cell: (row) => pill(row.status) },
      { key: "step", label: "Step", right: true, down: true, value: (row) => row.step, cell: (row) => [number(row.step), row.steps ? h("small", {}, ` / ${number(row.steps)}`) : ""] },
      { key: "best", label: "Best", right: true, value: (row) => row.best, cell: (row) => h("span", { title: row.best_text }, number(row.best)) },
      { key: "loss", label: "Loss", right: true, value: losses, cell: (row) => number(losses(row)) },
      { key: "attempts", label: "Attempts", right: true, wide: true, down: true, value: (row) => row.attempts, cell: (row) => [number(row.attempts), row.lost ? h("small", {}, ` ${row.lost} lost`) : ""] },
      { key: "hours", label: "Hours", right: true, wide: true, down: true, value: (row) => row.hours, cell: (row) => number(row.hours) },
      ...(rented ? [{ key: "usd", label: "Cost", right: true, down: true, value: (row) => row.usd, cell: (row) => row.price || "–" }] : []),
      { key: "seen", label: "Last sign", right: true, wide: true, down: true, value: (row) => row.seen, cell: (row) => h("span", { title: row.seen ? new Date(row.seen * 1000).toISOString() : "" }, ago(row.seen)) },
      { key: "differs", label: "Differs", value: (row) => row.differs || row.error, cell: (row) => row.error || row.differs, class: "differs" },
    ], "Runs");
    const sweeps = index.sweeps.length ? h("section", {}, h("h2", {}, "Sweeps"), h("ul", { class: "sweeps" }, index.sweeps.map((each) => {
      const best = each.rows.find((row) => row.trial === each.best);
      return h("li", {}, h("a", { href: `#sweep/${encodeURIComponent(each.id)}` }, each.id), ` ${some(each.rows.length, "trial")}`, best && best.value !== null ? `, best ${each.metric} ${number(best.value)} in trial ${best.trial}` : "");
    }))) : null;

    function statuses() {
      const names = [...new Set(index.runs.map((row) => row.status))].sort();
      status.replaceChildren(h("option", { value: "" }, "every status"), ...names.map((name) => h("option", { value: name }, `${name} (${index.runs.filter((row) => row.status === name).length})`)));
      status.value = names.includes(state.status) ? state.status : (state.status = "");
    }

    function draw() {
      const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
      const meant = index.runs.filter((row) => {
        const text = [row.run, row.recipe, row.status, row.differs].join(" ").toLowerCase();
        return (!state.status || row.status === state.status) && words.every((word) => text.includes(word));
      });
      runs.show(meant);
      pick.paint();
      count.textContent = meant.length === index.runs.length ? `${some(meant.length, "run")}` : `${meant.length} of ${some(index.runs.length, "run")}`;
    }

    statuses();
    const node = h("main", {},
      h("h1", { tabindex: "-1" }, index.title),
      sweeps,
      h("section", {}, sweeps ? h("h2", {}, "Runs") : null,
        h("div", { class: "filters" }, h("label", { class: "grow" }, h("span", { class: "unseen" }, "Filter"), filter), status,
          h("button", { type: "button", onclick: () => { state.chosen = new Set(); draw(); curves.show(); } }, "Draw none"), count),
        runs.node),
      curves.node);
    return {
      node,
      begin() { draw(); curves.show(); },
      update() { statuses(); draw(); curves.show(); },
      gone() { curves.gone(); },
    };
  }

  // ---- One run ----

  function placeOfAttempt(sheet, attempt, kind) {
    if (kind === "step") return [attempt.from, attempt.to];
    if (kind === "usd") return [attempt.paid, attempt.paid + attempt.usd];
    const begin = beginOf(sheet);
    return [attempt.began - begin, attempt.ended - begin];
  }

  function strip() {
    const bar = h("div", { class: "bar", role: "group", "aria-label": "Attempts" });
    const about = h("dl", { class: "facts", id: "attempt" });
    const hatch = h("p", { class: "note" }, "Hatched: steps that it computed again.");
    const node = h("section", { class: "strip" }, h("h2", {}, "Attempts"), bar, hatch, about);
    let chosen = null;
    function show(sheet, kind) {
      const all = sheet.attempts;
      node.hidden = !all.length;
      hatch.hidden = kind !== "step" || !all.some((each) => each.again);
      if (!all.length) return;
      const places = all.map((each) => placeOfAttempt(sheet, each, kind));
      const end = Math.max(...places.map(([, to]) => to)) || 1;
      const start = Math.min(...places.map(([from]) => from));
      const part = (value) => `${(100 * value) / (end - start || 1)}%`;
      if (!all.some((each) => each.number === chosen)) chosen = all[all.length - 1].number;
      const focused = bar.contains(document.activeElement) ? document.activeElement.dataset.number : null;
      bar.replaceChildren(...all.map((each, n) => {
        // By steps each begins where its own first step is, so what is computed again is seen once.
        const [from, to] = kind === "step" && n + 1 < all.length ? [places[n][0], Math.max(places[n][0], places[n + 1][0])] : places[n];
        const again = kind === "step" && to > from ? Math.min(1, each.again / (to - from)) : 0;
        const words = `Attempt ${each.number}, ${each.place}, ${each.kind}${each.again ? `, ${each.again} steps computed again` : ""}`;
        return h("button", { type: "button", class: `attempt is-${each.kind}`, "data-number": String(each.number), "aria-pressed": String(each.number === chosen), title: words, "aria-label": words, "aria-controls": "attempt",
          vars: { left: part(from - start), width: part(to - from) },
          onclick: () => { chosen = each.number; show(sheet, kind); } },
        again ? h("i", { class: "again", vars: { width: `${100 * again}%` } }) : null, h("span", {}, `${each.number}\u2002${each.place}`));
      }));
      if (focused) { const same = bar.querySelector(`[data-number="${focused}"]`); if (same) same.focus(); }
      const own = all.find((each) => each.number === chosen);
      about.replaceChildren(...pair("attempt", `${own.number} of ${all.length}, ${own.kind}`), ...own.texts.filter(([, text]) => text).flatMap(([name, text]) => pair(name, text)));
    }
    return { node, show };
  }

  const pair = (name, text) => [h("div", {}, h("dt", {}, name), h("dd", {}, text))];
  const folded = (title, text, open) => (text ? h("details", { open }, h("summary", {}, title), h("pre", { tabindex: "0" }, text)) : null);

  function runView(run) {
    const charted = panel();
    const attempts = strip();
    const bar = toolbar(() => shown && drawn(charted.again()));
    const facts = h("dl", { class: "facts" });
    const state_ = h("span", {});
    const problem = h("p", { class: "problem", role: "alert", hidden: true });
    const more = h("div", {});
    const sweep = index.sweeps.find((each) => each.rows.some((row) => row.run === run));
    let shown = null;

    function drawn(able) {
      bar.able(able, charted.kind());
      attempts.show(shown, charted.kind());
    }

    function text(sheet) {
      const open = new Set([...more.querySelectorAll("details[open] > summary")].map((each) => each.textContent));
      const first = !more.childElementCount;
      const receipt = sheet.receipt;
      const cells = (tag, row) => h("tr", {}, row.map((each) => h(tag, tag === "th" ? { scope: "col" } : {}, each)));
      const last = sheet.logs.length - 1;
      const title = (each) => `Log of attempt ${each.attempt}, first process`;
      more.replaceChildren(
        receipt.rows.length ? h("section", {}, h("h2", {}, "Receipt"),
          h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Receipt" }, h("table", {}, h("thead", {}, cells("th", receipt.head)), h("tbody", {}, receipt.rows.map((row) => cells("td", row))))),
          receipt.texts.map((each) => h("p", {}, each))) : "",
        h("section", {}, h("h2", {}, "What it is made from"), folded("Recipe", sheet.recipe, open.has("Recipe")) || "", folded("Lock", sheet.lock, open.has("Lock")) || ""),
        sheet.logs.length ? h("section", {}, h("h2", {}, "Logs"), sheet.logs.map((each, n) => folded(title(each), each.text, first ? n === last : open.has(title(each))))) : "");
    }

    async function load(fresh) {
      const row = rowOf(run);
      state_.replaceChildren(pill(row.status));
      facts.replaceChildren(...row.facts.flatMap(([name, each]) => pair(name, each)));
      try {
        const sheet = await sheetOf(run);
        problem.hidden = !sheet.problem;
        problem.textContent = sheet.problem;
        if (sheet === shown) return;
        shown = sheet;
        drawn(charted.show([{ run, sheet, colour: 0 }], fresh));
        text(sheet);
      } catch (error) {
        problem.hidden = false;
        problem.textContent = String(error.message || error);
      }
    }

    return {
      node: h("main", {},
        h("nav", {}, index.runs.length > 1 && !index.opens ? h("a", { href: "#" }, "All runs") : null, sweep ? [index.opens ? "" : " · ", h("a", { href: `#sweep/${encodeURIComponent(sweep.id)}` }, sweep.id)] : null),
        h("h1", { tabindex: "-1" }, run, " ", state_), problem, facts, attempts.node, bar.node, charted.node, more),
      begin: () => load(true),
      update: () => load(false),
      gone: () => charted.gone(),
    };
  }

  // ---- A sweep ----

  function parallel(sweep, open) {
    const box = h("div", { class: "parallel" });
    const known = sweep.rows.filter((row) => row.value !== null);
    const axes = [...sweep.keys.map((key) => ({ name: key, of: (row) => row.values[key] })), { name: sweep.metric, of: (row) => row.value }];
    const ranked = [...known].sort((a, b) => (sweep.mode === "min" ? a.value - b.value : b.value - a.value));
    const share = (row) => (ranked.length > 1 ? ranked.indexOf(row) / (ranked.length - 1) : 0);
    const lines = new Map();

    for (const axis of axes) {
      const values = sweep.rows.map(axis.of).filter((each) => each !== null && each !== undefined);
      if (values.length && values.every((each) => typeof each === "number")) {
        const [low, high] = [Math.min(...values), Math.max(...values)];
        const log = low > 0 && high / low > 30;
        const scale = log ? Math.log : (each) => each;
        axis.at = (each) => (high > low ? (scale(each) - scale(low)) / (scale(high) - scale(low)) : 0.5);
        const distinct = [...new Set(values)].sort((a, b) => a - b);
        axis.ticks = distinct.length <= 6 ? distinct : log ? [low, Math.sqrt(low * high), high] : [low, (low + high) / 2, high];
        axis.text = number;
      } else {
        const distinct = [...new Set(values.map((each) => JSON.stringify(each)))].sort();
        axis.at = (each) => (distinct.length > 1 ? distinct.indexOf(JSON.stringify(each)) / (distinct.length - 1) : 0.5);
        axis.ticks = distinct.map((each) => JSON.parse(each));
        axis.text = (each) => (typeof each === "string" ? each : JSON.stringify(each));
      }
    }

    function draw() {
      const width = Math.max(110 * axes.length, box.clientWidth || 700);
      const height = 300;
      const [top, bottom, edge] = [34, height - 14, 66];
      const x = (n) => edge + (n * (width - 2 * edge)) / (axes.length - 1);
      const y = (axis, value) => bottom - axis.at(value) * (bottom - top);
      const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Each trial's values and its ${sweep.metric}; the table below has the same.` });
      lines.clear();
      for (const row of [...sweep.rows].sort((a, b) => (known.includes(b) ? share(b) : 2) - (known.includes(a) ? share(a) : 2))) {
        const places = axes.filter((axis) => axis.of(row) !== null).map((axis) => `${x(axes.indexOf(axis)).toFixed(1)},${y(axis, axis.of(row)).toFixed(1)}`);
        const line = svg("polyline", { points: places.join(" "), class: known.includes(row) ? `rank-${Math.min(4, Math.floor(share(row) * 5))}` : "none" }, svg("title", {}, document.createTextNode(`Trial ${row.trial}: ${sweep.keys.map((key) => `${key} ${JSON.stringify(row.values[key])}`).join(", ")}, ${sweep.metric} ${number(row.value)}`)));
        line.addEventListener("pointerenter", () => light(row.trial));
        line.addEventListener("pointerleave", () => light(null));
        if (row.run) line.addEventListener("click", () => open(row.run));
        lines.set(row.trial, line);
        picture.append(line);
      }
      axes.forEach((axis, n) => {
        picture.append(svg("line", { x1: x(n), x2: x(n), y1: top, y2: bottom, class: "axis" }));
        picture.append(svg("text", { x: x(n), y: 14, "text-anchor": "middle", class: "head" }, document.createTextNode(axis.name.split(".").slice(-2).join("."))));
        for (const tick of axis.ticks) picture.append(svg("text", { x: x(n) + 6, y: y(axis, tick) - 5 }, document.createTextNode(axis.text(tick))));
      });
      box.replaceChildren(picture);
    }

    function light(trial) {
      for (const [number_, line] of lines) { line.classList.toggle("lit", number_ === trial); line.classList.toggle("dim", trial !== null && number_ !== trial); }
      for (const row of document.querySelectorAll("tr[data-trial]")) row.classList.toggle("lit", Number(row.dataset.trial) === trial);
    }

    const sized = new ResizeObserver(draw);
    sized.observe(box);
    return { node: box, light, draw, gone: () => sized.disconnect() };
  }

  function sweepView(id) {
    const sweepNow = () => index.sweeps.find((each) => each.id === id);
    const sweep = sweepNow();
    const open = (run) => { location.hash = pageOf(run); };
    state.chosen = new Set([...sweep.rows].filter((row) => row.run && row.value !== null).sort((a, b) => (sweep.mode === "min" ? a.value - b.value : b.value - a.value)).slice(0, SHOWN_AT_FIRST).map((row) => row.run));
    let curves = null;
    const pick = chooser([], () => curves.show());
    curves = over(pick);
    let picture = parallel(sweep, open);
    const short = (key) => key.split(".").pop();
    const label = (key) => (sweep.keys.filter((other) => short(other) === short(key)).length > 1 ? key : short(key));
    const paid = sweep.rows.some((row) => row.usd);
    const trials = table([
      { key: "draw", label: h("span", { class: "unseen" }, "Draw"), cell: (row) => (row.run ? pick.box({ run: row.run }) : ""), class: "boxes" },
      { key: "trial", label: "Trial", right: true, value: (row) => row.trial, cell: (row) => String(row.trial) },
      ...sweep.keys.map((key) => ({ key, label: label(key), right: true, value: (row) => row.values[key], cell: (row) => (typeof row.values[key] === "number" ? number(row.values[key]) : typeof row.values[key] === "string" ? row.values[key] : JSON.stringify(row.values[key])) })),
      { key: "value", label: sweep.metric, right: true, down: sweep.mode === "max", value: (row) => row.value, cell: (row) => (row.trial === sweepNow().best ? h("strong", {}, number(row.value), " best") : number(row.value)) },
      { key: "state", label: "State", value: (row) => row.state, cell: (row) => [pill(row.state), row.failed ? h("small", {}, ` ${row.failed}`) : ""] },
      { key: "rung", label: "Rung", right: true, wide: true, down: true, value: (row) => row.rung, cell: (row) => String(row.rung) },
      { key: "step", label: "Step", right: true, down: true, value: (row) => row.step, cell: (row) => number(row.step) },
      { key: "hours", label: "Hours", right: true, wide: true, down: true, value: (row) => row.hours, cell: (row) => number(row.hours) },
      ...(paid ? [{ key: "usd", label: "Cost", right: true, down: true, value: (row) => row.usd, cell: (row) => (row.usd === null ? "–" : money(row.usd)) }] : []),
      { key: "run", label: "Run", value: (row) => row.run, cell: (row) => (row.run ? h("a", { href: pageOf(row.run), "data-key": row.run }, row.run) : "not begun"), class: "name" },
    ], "Trials");
    const holder = h("div", {}, picture.node);
    const matters = h("div", {});
    function importance(now) {
      // What nobody can tell yet stands below what is told, and says why.
      const found = [...now.importance].sort(([, a], [, b]) => (b ?? -1) - (a ?? -1));
      const told = found.some(([, part]) => part !== null);
      const meter = (part) => h("b", { class: "meter" }, h("i", { vars: { width: `${100 * part}%` } }));
      const lines = found.map(([key, part]) => h("li", {}, h("span", {}, key), ...(part === null ? [h("small", {}, "too few trials to tell"), ""] : [meter(part), h("span", { class: "value" }, `${Math.round(100 * part)} %`)])));
      matters.replaceChildren(...(now.rows.some((row) => row.value !== null) ? [h("h2", {}, "What matters"), h("ul", { class: "importance" }, lines),
        h("p", { class: "note" }, told ? `How much of the order of the trials by ${now.metric} goes along with each parameter alone (epsilon squared of their ranks). What only matters together shows as little.` : "It takes two trials with each value, or four with numbers from a range.")] : []));
    }
    function draw() {
      const now = sweepNow();
      trials.show(now.rows, (row, tr) => {
        tr.dataset.trial = String(row.trial);
        tr.addEventListener("pointerenter", () => picture.light(row.trial));
        tr.addEventListener("pointerleave", () => picture.light(null));
        tr.addEventListener("focusin", () => picture.light(row.trial));
        tr.addEventListener("focusout", () => picture.light(null));
        return tr;
      });
      importance(now);
      pick.paint();
    }
    const states = (now) => Object.entries(now.rows.reduce((all, row) => ({ ...all, [row.state]: (all[row.state] || 0) + 1 }), {})).map(([name, count]) => `${count} ${name}`).join(", ");
    const told = h("p", {}, `${some(sweep.rows.length, "trial")}: ${states(sweep)}; by ${sweep.metric}, ${sweep.mode === "min" ? "less" : "more"} is better.`);
    return {
      node: h("main", {}, h("nav", {}, id === index.opens ? null : h("a", { href: "#" }, "All runs")), h("h1", { tabindex: "-1" }, id), told, holder,
        h("p", { class: "note" }, "A line for each trial, the best ones strongest; dashed ones have no value."), matters, h("h2", {}, "Trials"), trials.node, curves.node),
      begin() { draw(); curves.show(); },
      update() {
        const now = sweepNow();
        if (!now) return;
        told.textContent = `${some(now.rows.length, "trial")}: ${states(now)}; by ${now.metric}, ${now.mode === "min" ? "less" : "more"} is better.`;
        picture.gone();
        picture = parallel(now, open);
        holder.replaceChildren(picture.node);
        draw();
        curves.show();
      },
      gone() { picture.gone(); curves.gone(); state.chosen = null; },
    };
  }

  // ---- Which view, how it looks, and what is new ----

  let view = null;
  const stage = h("div", {});
  const age = h("span", { class: "count" }, index.live ? "live" : `made ${index.made_text}`);

  function go(first) {
    const [, kind, name] = /^#(run|sweep)\/(.*)$/.exec(location.hash) || [];
    let wanted = "";
    try { wanted = decodeURIComponent(name || ""); } catch { /* no address of ours */ }
    if (view) view.gone();
    const only = index.runs.length === 1 && !index.sweeps.length ? index.runs[0].run : null;
    if (kind === "run" && rowOf(wanted)) view = runView(wanted);
    else if (kind === "sweep" && index.sweeps.some((each) => each.id === wanted)) view = sweepView(wanted);
    else view = only ? runView(only) : index.sweeps.some((each) => each.id === index.opens) ? sweepView(index.opens) : listView();
    stage.replaceChildren(view.node);
    view.begin();
    document.title = wanted ? `${wanted} - ${index.title}` : index.title;
    if (!first) { scrollTo(0, 0); view.node.querySelector("h1").focus({ preventScroll: true }); }
  }

  function kept(name, value) {
    // A file opened from disk may be refused a memory.
    try { if (value === undefined) return localStorage.getItem(name); localStorage.setItem(name, value); } catch { /* then it is asked again */ }
    return null;
  }

  const LOOKS = { auto: "System colours", light: "Light", dark: "Dark" };
  const look = h("select", { "aria-label": "Colours", onchange: () => paint(look.value) }, Object.entries(LOOKS).map(([name, text]) => h("option", { value: name }, text)));
  function paint(name) {
    look.value = name in LOOKS ? name : "auto";
    document.documentElement.dataset.theme = look.value;
    kept("xrun-colours", look.value);
    for (const each of charts) each.redraw();
  }
  paint(kept("xrun-colours") || "auto");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const each of charts) each.redraw(); });

  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox" && event.target.type !== "radio";
    const filter = document.getElementById("filter");
    if (event.key === "/" && filter && !typing) { filter.focus(); event.preventDefault(); }
  });

  async function follow() {
    try {
      const answer = await fetch("index.json");
      if (!answer.ok) throw new Error(String(answer.status));
      const before = index.runs.length + index.sweeps.length;
      Object.assign(index, { ...(await answer.json()), live: index.live });
      age.textContent = "live";
      age.classList.remove("late");
      if (before <= 1 && index.runs.length + index.sweeps.length > 1) go(true); else view.update();
    } catch {
      age.textContent = `not live any more: the server is gone (${index.made_text})`;
      age.classList.add("late");
    }
    setTimeout(follow, 1000 * index.live);
  }

  app.append(h("header", {}, h("a", { href: "#", class: "brand" }, "xrun"), age, look), stage, spoken);
  addEventListener("hashchange", () => go(false));
  go(true);
  if (index.live) setTimeout(follow, 1000 * index.live);
})();
