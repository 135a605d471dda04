// The view of a run. It asks the server what is new, and extends what it has drawn; it holds no truth of its own:
// text, state and buttons are what the server's last answer says.
cnnDemo.showRun = (root, props, server, trigger, watch) => {
  const { make, button, copyButton, percent, clock, owner } = cnnDemo;
  const MOST_POINTS = 440; // of a curve in memory; drawn are two for its extremes, one smoothed, one learning rate
  const ACTIVE = ["queued", "preparing", "training", "validating", "testing", "stopping"];
  const CAN_CONTINUE = ["stopped", "failed", "interrupted"];
  const SLOW = location.hostname.endsWith(".hf.space"); // where many visitors ask through one proxy
  const RESULTS = { state: "ended", test: "test accuracy", validation: "validation accuracy", steps: "steps", time: "time", speed: "images/s" };

  const box = root.querySelector(".run-view");
  const part = {};
  for (const [name, tag] of [["note", "p"], ["head", "div"], ["status", "p"], ["bar", "div"], ["actions", "div"], ["card", "div"], ["tools", "div"], ["chart", "div"], ["summary", "p"], ["log", "details"], ["compare", "details"]]) {
    part[name] = make(tag, { class: `run-${name}` });
    box.append(part[name]);
  }
  part.summary.setAttribute("aria-live", "polite");
  part.note.setAttribute("role", "alert");
  part.bar.append(make("div"));
  for (const [name, value] of [["role", "progressbar"], ["aria-label", "progress"], ["aria-valuemin", 0], ["aria-valuemax", 100]]) part.bar.setAttribute(name, value);

  const records = new Map(); // run id -> what is known of it
  let shown = ""; // the run id in view
  let shipped = null;
  let others = []; // run ids that are overlaid
  let replayed = null; // how much of the curve a replay has reached, 0 to 1
  let timer = 0;
  let failures = 0;
  let drawing = 0; // milliseconds of the last drawing
  let held = false; // someone drags in the chart, which a drawing would end
  let busy = null;
  let asking = false;
  let again = false; // something happened while asking

  // --- asking ---

  // Gradio's client answers nothing where the server could not be reached, or failed.
  async function call(name, asked) {
    const answer = await server[name]({ ...asked, owner: owner() });
    if (!answer) throw new Error("no answer");
    return answer;
  }

  function apply(record, answer) {
    if (answer.reset) Object.assign(record, { points: [], epochs: [], log: [], source: answer.source, config: answer.config, started: answer.started, owned: answer.owned });
    const { points, epochs, log, ...state } = answer;
    record.points.push(...points);
    while (record.points.length > MOST_POINTS) record.points = halve(record.points);
    for (const epoch of epochs) record.epochs = [...record.epochs.filter((known) => known[0] < epoch[0]), epoch];
    record.log.push(...log);
    Object.assign(record, state);
    record.end = answer.end || null;
    record.error = "";
  }

  // Two neighbours become one with their mean loss, weighted by steps, and both extremes.
  function halve(points) {
    const merged = [];
    for (let i = 0; i < points.length; i += 2) {
      const [a, b] = [points[i], points[i + 1]];
      if (!b) merged.push(a);
      else {
        const before = i ? points[i - 1][0] : 0;
        const weight = (a[0] - before) / (b[0] - before);
        merged.push([b[0], a[1] * weight + b[1] * (1 - weight), Math.min(a[2], b[2]), Math.max(a[3], b[3]), b[4]]);
      }
    }
    return merged;
  }

  const ended = (record) => record.state && !ACTIVE.includes(record.state);
  const visible = () => document.visibilityState === "visible" && box.offsetParent !== null;

  async function ask() {
    clearTimeout(timer);
    if (asking) return void (again = true);
    if (!shown || !visible()) return;
    asking = true;
    again = false;
    try {
      for (const id of [shown, ...others]) {
        const record = records.get(id);
        if (!record || (ended(record) && record.settled)) continue;
        const answer = await call("watch", { run: id, after: record.seq });
        if (answer.error) {
          record.error = answer.error;
          if (id === shown) setBusy((await call("listing", {})).active);
        } else apply(record, answer);
        record.settled = !again && Boolean(answer.error || ended(record));
        if (id === shown && !answer.error) setBusy(answer.active);
      }
      failures = 0;
    } catch {
      failures += 1;
    }
    asking = false;
    draw();
    const alive = [shown, ...others].some((id) => !records.get(id)?.settled);
    // At most a fiftieth of a core for drawing: on a small machine the training may run on the very same one.
    const pause = Math.max(SLOW ? 2500 : 1000, Math.min(50 * drawing, 4000), failures ? 1000 * 2 ** Math.min(failures, 4) : 0);
    if (again) ask();
    else if (alive) timer = setTimeout(ask, pause);
    // someone may continue it elsewhere
    else if (busy || CAN_CONTINUE.includes(records.get(shown)?.state)) timer = setTimeout(recheck, 10000);
  }

  function recheck() {
    const record = records.get(shown);
    if (record) record.settled = false;
    ask();
  }

  function setBusy(active) {
    if (busy !== Boolean(active)) trigger("busy", { busy: (busy = Boolean(active)) });
  }

  async function act(action, run) {
    const answer = await call("change", { action, run }).catch(() => ({ error: "The server did not answer; try again." }));
    part.note.textContent = answer.error || "";
    part.actions.dataset.asked = "";
    if (action === "discard" && !answer.error) {
      records.delete(run);
      cnnDemo.remember("");
      return attach(null);
    }
    recheck();
  }

  function attach(run) {
    shown = run || shipped || "";
    others = others.filter((id) => id !== shown);
    replayed = null;
    if (run) cnnDemo.remember(run);
    if (shown && !records.has(shown)) records.set(shown, { seq: -1, points: [], epochs: [], log: [] });
    part.log.open = false;
    part.actions.dataset.asked = "";
    for (const name of ["actions", "card"]) rebuild(part[name], "", () => []); // those of the run before
    if (shown) recheck();
    else draw();
    if (part.compare.open) listRuns();
  }

  function overlay(id, wanted) {
    others = wanted ? [...others, id].slice(-3) : others.filter((other) => other !== id);
    if (!records.has(id)) records.set(id, { seq: -1, points: [], epochs: [], log: [] });
    recheck();
    listRuns();
  }

  // --- words and buttons ---

  function draw() {
    const record = records.get(shown);
    if (!record) return drawEmpty();
    if (record.error) part.note.textContent = record.error;
    if (!record.config) return;
    const example = shown === shipped;
    const { config, state, end } = record;
    part.head.replaceChildren(
      make("span", { class: `badge ${state}` }, example ? "example" : state),
      make("strong", {}, `${config.model} on ${config.dataset === "cifar10" ? "CIFAR-10" : "shapes, drawn by the program"}`),
      make("span", { class: "quiet" }, example ? (record.saved ? "the real run that made the checkpoint shipped with this app" : "a real run, recorded for this page") : record.source.repo ? `from the Hub: ${record.source.repo}@${record.source.commit.slice(0, 8)}` : record.mine ? "your run" : record.owned ? "you are watching" : "from the command line"),
      make("code", { class: "quiet" }, shown),
    );
    const lost = failures > 1 ? " · the server does not answer, trying again" : "";
    setText(part.status, record.text + lost);
    const share = replayed === null ? (ended(record) && end?.reason === "finished" ? 1 : record.share) : replayed;
    part.bar.firstChild.style.width = `${100 * share}%`;
    part.bar.setAttribute("aria-valuenow", Math.round(100 * share));
    part.bar.hidden = ended(record) && replayed === null;
    drawActions(record, example);
    drawCard(record);
    drawSummary(record);
    drawLog(record);
    drawComparison();
    drawChart();
  }

  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  // Builds anew only when `key` differs, so that a button keeps its focus while the run goes on.
  function rebuild(node, key, build) {
    if (node.dataset.key === key) return;
    node.dataset.key = key;
    node.replaceChildren(...build().filter(Boolean));
  }

  function drawEmpty() {
    part.head.replaceChildren(make("strong", {}, "Nothing has been trained here yet"));
    part.status.textContent = "Choose a network and press Start training: after a few seconds its loss appears here and falls while you watch. The run goes on when you close the page.";
    for (const name of ["actions", "card", "log"]) rebuild(part[name], "", () => []);
    setText(part.summary, "");
    drawComparison();
    part.bar.hidden = part.log.hidden = part.tools.hidden = part.chart.hidden = true;
    call("listing", {}).then((answer) => setBusy(answer.active), () => {});
  }

  function drawActions(record, example) {
    const { state, mine } = record;
    const asked = part.actions.dataset.asked === "yes";
    const run = shown;
    rebuild(part.actions, [shown, state, mine, asked, record.saved, replayed !== null].join(), () => [
      mine && state === "queued" && button("Leave the queue", () => act("stop", run), "stop"),
      mine && state !== "queued" && state !== "stopping" && ACTIVE.includes(state) && button("Stop and keep the best", () => act("stop", run), "stop"),
      mine && !record.source.repo && CAN_CONTINUE.includes(state) && button("Continue", () => act("continue", run), "main"),
      record.saved && button("Classify a picture with it", () => trigger("use", { run }), state === "finished" ? "main" : ""),
      record.saved && (mine || !record.owned) && ended(record) && button("Save or download", () => trigger("save", { run })),
      ended(record) && record.points.length > 2 && button(replayed === null ? "Replay" : "Show all of it", replayed === null ? replay : () => ((replayed = null), draw())),
      !example && copyButton(() => `${location.origin}${location.pathname}?run=${shown}`, "link to this run"),
      mine && !ACTIVE.includes(state) && !asked && button("Discard", () => ((part.actions.dataset.asked = "yes"), draw())),
      asked && button("Yes, delete the run and its weights", () => act("discard", run), "stop"),
      asked && button("Keep it", () => ((part.actions.dataset.asked = ""), draw())),
    ]);
  }

  function results(record) {
    const { end, started, state } = record;
    const best = record.epochs.filter((epoch) => epoch[5]).at(-1);
    return {
      state,
      test: end?.test_accuracy == null ? "" : `${percent(end.test_accuracy)} of ${end.test_pictures.toLocaleString("en")}`,
      validation: best?.[4] == null ? "" : `${percent(best[4])}, epoch ${best[1]}`,
      steps: String(end?.step ?? record.points.at(-1)?.[0] ?? 0),
      time: end ? clock(end.seconds) : "",
      speed: end?.images_per_second ? Math.round(end.images_per_second).toLocaleString("en") + (started ? ` (${started.device})` : "") : "",
    };
  }

  function drawCard(record) {
    const { end } = record;
    rebuild(part.card, [shown, record.state, end?.seq].join(), () => {
      if (!end || !ended(record)) return [];
      const found = results(record);
      const next = { finished: `Next: ${record.saved ? "classify a picture with it, or " : ""}change one thing in the recipe and compare.`, stopped: "Next: continue where it was, or classify with what it has.", failed: "Next: mend what the sentence names, then continue.", diverged: "Next: start again with a lower learning rate; the last good weights are kept.", interrupted: "Next: continue where it was saved." }[record.state];
      const big = end.test_accuracy == null ? null : make("div", { class: "big" }, make("strong", {}, percent(end.test_accuracy)), make("span", {}, `of ${end.test_pictures.toLocaleString("en")} test pictures are told right${record.source.repo ? `, says ${record.source.repo}` : ""}`));
      const facts = Object.entries(RESULTS).filter(([key]) => found[key] && key !== "test" && key !== "state").map(([key, title]) => [make("dt", {}, title), make("dd", {}, found[key])]);
      if (record.saved) facts.push([make("dt", {}, "checkpoint"), make("dd", {}, make("code", {}, `checkpoints/${shown}/model.safetensors`))]);
      return [big, make("dl", {}, ...facts.flat()), next && make("p", {}, next)];
    });
  }

  function drawSummary(record) {
    const [first] = record.epochs;
    const last = record.epochs.at(-1);
    const best = record.epochs.filter((epoch) => epoch[5]).at(-1);
    if (!last) return setText(part.summary, record.points.length > 1 ? "The first epoch is under way." : "");
    const validated = best?.[4] == null ? "" : ` Best validation accuracy: ${percent(best[4])}, after epoch ${best[1]}.`;
    setText(part.summary, `Training loss: ${first[2].toFixed(2)} in epoch ${first[1]}${first === last ? "" : `, ${last[2].toFixed(2)} in epoch ${last[1]}`}.${validated}`);
  }

  function drawLog(record) {
    const { end } = record;
    const lines = [...record.log];
    if (end?.test_accuracy != null) lines.push(`Accuracy of the network on the ${end.test_pictures} test images: ${(100 * end.test_accuracy).toFixed(2)} %`);
    part.log.hidden = !lines.length;
    if (!lines.length) return;
    rebuild(part.log, shown, () => [make("summary", {}, "Log, as the course project printed it"), make("pre", { tabindex: "0" }), copyButton(() => part.log.querySelector("pre").textContent, "log")]);
    const pre = part.log.querySelector("pre");
    const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 4;
    setText(pre, lines.join("\n"));
    if (atEnd) pre.scrollTop = pre.scrollHeight;
  }

  // --- comparison ---

  part.compare.append(make("summary", {}, "Compare with other runs"), make("div", { class: "run-list" }), make("div", { class: "run-table" }));
  part.compare.addEventListener("toggle", () => part.compare.open && listRuns());

  async function listRuns() {
    const list = part.compare.querySelector(".run-list");
    const { runs = [] } = await call("listing", {}).catch(() => ({}));
    const rows = runs.filter((run) => run.run !== shown).slice(0, 30);
    list.replaceChildren(...(rows.length ? [] : [make("p", { class: "quiet" }, "There is no other run yet. Train a second one, with one thing changed, and it can be laid over this one.")]));
    for (const run of rows) {
      const chosen = others.includes(run.run);
      const result = run.test_accuracy != null ? ` · ${percent(run.test_accuracy)} test` : run.validation_accuracy != null ? ` · ${percent(run.validation_accuracy)} validation` : "";
      const label = `${run.run} · ${run.model}, ${run.dataset} · ${run.state}${result}`;
      const check = make("input", { type: "checkbox", checked: chosen, disabled: !chosen && others.length > 2, onchange: (event) => overlay(run.run, event.target.checked) });
      list.append(make("div", {}, make("label", {}, check, label), button("Show", () => attach(run.run))));
    }
    drawComparison();
  }

  function drawComparison() {
    const table = part.compare.querySelector(".run-table");
    const chosen = [shown, ...others].map((id) => [id, records.get(id)]).filter(([, record]) => record?.config);
    rebuild(table, chosen.map(([id, record]) => [id, record.state, record.epochs.length].join()).join(";"), () => {
      if (chosen.length < 2) return [];
      const fields = Object.keys(chosen[0][1].config).filter((name) => new Set(chosen.map(([, record]) => String(record.config[name]))).size > 1);
      const row = (title, cells) => make("tr", {}, make("th", { scope: "row" }, title), ...cells.map((cell) => make("td", {}, cell)));
      const head = make("tr", {}, make("td"), ...chosen.map(([id], i) => make("th", { scope: "col" }, make("span", { class: `dot run-${i + 1}` }), id)));
      const differing = fields.map((name) => row(name.replaceAll("_", " "), chosen.map(([, record]) => String(record.config[name] ?? ""))));
      const found = chosen.map(([, record]) => results(record));
      const rows = Object.entries(RESULTS).map(([key, title]) => row(title, found.map((result) => result[key])));
      const same = differing.length ? [] : [row("settings", chosen.map(() => "the same"))];
      return [make("div", { class: "scroll" }, make("table", {}, make("caption", {}, "What differs, and what came of it"), make("thead", {}, head), make("tbody", {}, ...same, ...differing, ...rows)))];
    });
  }

  // --- the charts ---

  const choices = { log: false, smoothing: 0.8 };
  part.tools.append(
    make("label", {}, "smoothing ", make("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: choices.smoothing, "aria-label": "smoothing of the training loss", oninput: (event) => ((choices.smoothing = Number(event.target.value)), drawChart()) })),
    make("label", {}, make("input", { type: "checkbox", onchange: (event) => ((choices.log = event.target.checked), drawChart()) }), " logarithmic loss"),
  );

  // An exponential moving average that does not start at zero.
  function smooth(values, factor) {
    let [sum, weight] = [0, 0];
    return values.map((value) => ((sum = factor * sum + (1 - factor) * value), (weight = factor * weight + 1 - factor), sum / weight));
  }

  function traces(id, index, colour) {
    const record = records.get(id);
    let { points, epochs } = record;
    if (id === shown && replayed !== null) {
      const last = replayed * (points.at(-1)?.[0] || 0);
      points = points.filter((point) => point[0] <= last);
      epochs = epochs.filter((epoch) => epoch[0] <= last);
    }
    const steps = points.map((point) => point[0]);
    const many = others.length > 0;
    const name = (text) => (many ? `${index + 1}: ${text}` : text);
    const validated = epochs.filter((epoch) => epoch[3] != null);
    const best = validated.filter((epoch) => epoch[5]).at(-1);
    const line = { type: "scatter", mode: "lines", legendgroup: many ? String(index) : undefined };
    const marks = { type: "scatter", mode: "lines+markers", legendgroup: line.legendgroup };
    return [
      { ...line, name: name("loss, raw"), x: points.flatMap((p) => [p[0], p[0]]), y: points.flatMap((p) => [p[3], p[2]]), line: { color: colour, width: 1 }, opacity: 0.35, hoverinfo: "skip" },
      { ...line, name: name("loss, smoothed"), x: steps, y: smooth(points.map((p) => p[1]), choices.smoothing), line: { color: colour, width: 2 }, hovertemplate: "%{y:.3f}" },
      { ...marks, name: name("validation loss"), x: validated.map((e) => e[0]), y: validated.map((e) => e[3]), line: { color: colour, width: 1.5, dash: "dot" }, marker: { size: 6, symbol: "diamond" }, hovertemplate: "%{y:.3f}" },
      { ...marks, name: name("validation accuracy"), yaxis: "y2", x: validated.map((e) => e[0]), y: validated.map((e) => e[4]), line: { color: colour, width: 2 }, marker: { size: 6 }, hovertemplate: "%{y:.1%}" },
      { type: "scatter", mode: "markers", legendgroup: line.legendgroup, name: name("best checkpoint"), yaxis: "y2", x: best ? [best[0]] : [], y: best ? [best[4]] : [], marker: { color: colour, size: 15, symbol: "star", line: { width: 1, color: style("--background") } }, hovertemplate: "best: %{y:.1%}" },
      { ...line, name: name("learning rate"), yaxis: "y3", x: steps, y: points.map((p) => p[4]), line: { color: colour, width: 1.5 }, hovertemplate: "%{y:.3g}" },
    ];
  }

  const style = (name) => getComputedStyle(box).getPropertyValue(name).trim();

  let loading = null;
  function loadPlotly() {
    loading ||= new Promise((resolve, reject) => {
      document.head.append(make("script", { src: props.plotly, onload: resolve, onerror: reject }));
    });
    return loading;
  }

  async function drawChart() {
    const ids = [shown, ...others].filter((id) => records.get(id)?.config);
    part.chart.hidden = part.tools.hidden = !ids.some((id) => records.get(id).points.length);
    if (part.chart.hidden) return;
    try {
      await loadPlotly();
    } catch {
      loading = null;
      return setText(part.note, "The charts could not be loaded; reload the page.");
    }
    if (!visible() || held) return;
    const key = [...ids.map((id) => [id, records.get(id).seq]), choices.log, choices.smoothing, replayed, box.clientWidth, style("--ink")].join();
    if (part.chart.dataset.key === key) return;
    part.chart.dataset.key = key;
    const begun = performance.now();
    const narrow = box.clientWidth < 560;
    const [ink, grid] = [style("--ink"), style("--grid")];
    const axis = { gridcolor: grid, zeroline: false, automargin: false, fixedrange: narrow };
    const layout = {
      width: part.chart.clientWidth,
      height: narrow ? 560 : 620,
      margin: narrow ? { l: 48, r: 4, t: 4, b: 40 } : { l: 56, r: 12, t: 4, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      hovermode: "x unified",
      hoversubplots: "axis",
      hoverlabel: { bgcolor: style("--background"), font: { color: ink } },
      legend: { orientation: "h", y: 1.01, yanchor: "bottom", x: 0, font: { size: narrow ? 10 : 11 }, ...(narrow ? { entrywidth: 0.48, entrywidthmode: "fraction" } : {}) },
      dragmode: narrow ? false : "zoom",
      uirevision: shown,
      xaxis: { ...axis, title: { text: "step" }, anchor: "y3", rangemode: "tozero" },
      yaxis: { ...axis, title: { text: "loss (nats)" }, domain: [0.47, 1], type: choices.log ? "log" : "linear", uirevision: shown + choices.log },
      yaxis2: { ...axis, title: { text: "accuracy" }, domain: [0.19, 0.42], tickformat: ".0%", range: [0, 1] },
      yaxis3: { ...axis, title: { text: "rate" }, domain: [0, 0.13], rangemode: "tozero", nticks: 3 },
    };
    const data = ids.flatMap((id, index) => traces(id, index, style(`--run-${index + 1}`)));
    await Plotly.react(part.chart, data, layout, { displayModeBar: narrow ? false : "hover", displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
    part.chart.setAttribute("role", "figure");
    part.chart.setAttribute("aria-label", `Loss, accuracy and learning rate by step. ${part.summary.textContent}`);
    requestAnimationFrame(() => setTimeout(() => (drawing = performance.now() - begun))); // painting included
  }

  function replay() {
    const begun = performance.now();
    replayed = 0;
    const frame = () => {
      if (replayed === null) return;
      replayed = Math.min(1, (performance.now() - begun) / 8000);
      if (replayed === 1) replayed = null;
      draw();
      if (replayed !== null) setTimeout(frame, Math.max(100, 2 * drawing));
    };
    frame();
  }

  // --- life ---

  const update = () => {
    const value = props.value || {};
    if (value.refused) return void (part.note.textContent = value.refused);
    if ("shipped" in value) shipped = value.shipped;
    part.note.textContent = value.note || "";
    attach(value.run);
    if (value.started) box.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };
  watch("value", update);
  document.addEventListener("visibilitychange", () => visible() && ask());
  part.chart.addEventListener("pointerdown", () => (held = true), true);
  for (const end of ["pointerup", "pointercancel", "blur"]) addEventListener(end, () => held && ((held = false), setTimeout(drawChart)));
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth === width) return;
    width = box.clientWidth; // 0 while another tab of the page is open
    if (!width) return;
    drawChart();
    ask();
  }).observe(box);
  new MutationObserver(drawChart).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  if (props.value?.shipped !== undefined || props.value?.run) update();
};
