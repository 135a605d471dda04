// The view of a run: puts state, texts and charts together, and follows what the visitor and the server do.
cnnDemo.showRun = (root, props, server, trigger, watch) => {
  const { make, copyButton, setText, rebuild, hasEnded } = cnnDemo;
  const box = root.querySelector(".run-view");
  const part = buildParts();
  const isVisible = () => document.visibilityState === "visible" && box.offsetParent !== null;
  const charts = cnnDemo.runChart({
    box, tools: part.tools, chart: part.chart, plotly: props.plotly, isVisible,
    onError: (sentence) => setText(part.note, sentence),
  });
  const drawSamples = cnnDemo.runSamples(part.samples);
  const state = cnnDemo.runState({
    server, isVisible, drawingCost: charts.cost, onChange: draw,
    onBusy: (busy) => trigger("busy", { busy }),
  });
  let replayed = null; // how much of the curve a replay has reached, 0 to 1
  let confirming = false; // Discard was pressed once
  let editing = false; // the title is being changed

  function buildParts() {
    const part = {};
    const add = (parent, name, tag = "div", attributes = {}) => {
      part[name] = make(tag, { class: `run-${name}`, ...attributes });
      parent.append(part[name]);
    };
    add(box, "note", "p", { role: "alert" });
    add(box, "head");
    add(box, "status", "p");
    add(box, "bar", "div", { role: "progressbar", "aria-label": "progress", "aria-valuemin": 0, "aria-valuemax": 100 });
    part.bar.append(make("div"));
    add(box, "actions");
    add(box, "body");
    add(part.body, "side");
    add(part.body, "main");
    add(part.side, "card");
    add(part.side, "summary", "p", { "aria-live": "polite" });
    add(part.side, "compare", "details");
    add(part.side, "log", "details");
    add(part.main, "tools");
    add(part.main, "chart");
    add(part.main, "samples");
    add(box, "table");
    add(box, "evaluation", "details");
    part.compare.append(make("summary", {}, "Compare with other runs"), make("div", { class: "run-list" }));
    return part;
  }

  // --- drawing ---

  function draw() {
    const record = state.records.get(state.shown);
    if (record?.error) state.note = record.error;
    setText(part.note, state.note);
    box.classList.toggle("is-empty", !record);
    if (!record) return drawEmpty();
    if (!record.config) return;
    const run = state.shown;
    const isExample = run === state.shipped;
    drawHead(run, record, isExample);
    drawProgress(record);
    const key = [run, record.state, record.mine, record.saved, record.points.length > 2, confirming, replayed !== null];
    rebuild(part.actions, key.join(), () =>
      cnnDemo.actionButtons(run, record, {
        isExample, confirming, replaying: replayed !== null, actions: actionsOf(run),
      }));
    rebuild(part.card, [run, record.state, record.end?.seq, record.saved].join(), () => cnnDemo.cardNodes(run, record));
    setText(part.summary, cnnDemo.summaryText(record));
    drawLog(run, record);
    drawEvaluation(run, record);
    const runs = [run, ...state.others].map((id) => [id, state.records.get(id)]).filter(([, other]) => other?.config);
    drawTable(runs);
    charts.draw(runs, replayed, part.summary.textContent);
    drawSamples(runs, cnnDemo.lastStep(record, replayed));
  }

  function drawEmpty() {
    part.head.replaceChildren(make("strong", {}, "Nothing has been trained here yet"));
    part.head.dataset.key = "";
    setText(part.status, "Choose a network and press Start training: after a few seconds its loss appears here and " +
      "falls while you watch. You can close the page; the run continues.");
    for (const name of ["actions", "card", "log", "evaluation", "table"]) rebuild(part[name], "", () => []);
    setText(part.summary, "");
    for (const name of ["bar", "log", "tools", "chart", "samples", "evaluation"]) part[name].hidden = true;
  }

  function drawHead(run, record, isExample) {
    const edit = (now) => {
      editing = now;
      draw();
      if (!now) part.head.querySelector(".rename")?.focus();
    };
    const rename = (title) => state.change("rename", run, title).then((done) => {
      if (done) record.title = title; // until the next answer
      if (done && part.compare.open) listRuns();
      draw();
      return done;
    });
    const badge = isExample ? "example" : record.state;
    const key = editing ? [run, "editing"] : [run, badge, record.title, record.mine];
    const about = `${props.fields.dataset.choices[record.config.dataset]} · ${cnnDemo.origin(record, isExample)}`;
    rebuild(part.head, key.join(), () => [
      make("span", { class: `badge ${record.state}` }, badge),
      ...cnnDemo.titleNodes(record, { editing, edit, rename }),
      make("span", { class: "quiet" }, about),
      make("code", { class: "quiet" }, run),
    ]);
  }

  function drawProgress(record) {
    const lost = state.failures > 1 ? " · the server does not answer, trying again" : "";
    setText(part.status, record.text + lost);
    const done = hasEnded(record) && record.end?.reason === "finished";
    const share = replayed ?? (done ? 1 : record.share);
    part.bar.firstChild.style.width = `${100 * share}%`;
    part.bar.setAttribute("aria-valuenow", Math.round(100 * share));
    part.bar.hidden = hasEnded(record) && replayed === null;
  }

  function drawLog(run, record) {
    const text = cnnDemo.logText(record);
    part.log.hidden = !text;
    if (!text) return;
    rebuild(part.log, run, () => [
      make("summary", {}, "Training log"),
      make("pre", { tabindex: "0" }),
      copyButton(() => part.log.querySelector("pre").textContent, "log"),
    ]);
    const pre = part.log.querySelector("pre");
    const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 4;
    setText(pre, text);
    if (atEnd) pre.scrollTop = pre.scrollHeight;
  }

  // Asks for the evaluation once, when it is opened; again where that failed.
  function drawEvaluation(run, record) {
    part.evaluation.hidden = !hasEnded(record) || !record.saved;
    rebuild(part.evaluation, [run, record.evaluated, record.end?.seq].join(), () => {
      part.evaluation.open = false;
      return [make("summary", {}, "Evaluation: classes, confusion, calibration, mistakes"), make("div")];
    });
  }

  part.evaluation.addEventListener("toggle", async () => {
    const content = part.evaluation.querySelector("div");
    const isFilled = content?.childNodes.length && !content.querySelector(".wrong");
    if (!part.evaluation.open || !content || isFilled) return;
    const run = state.shown;
    content.replaceChildren(...cnnDemo.evaluation(run, await state.evaluation(run)));
  });

  // --- comparison ---

  async function listRuns() {
    const { runs = [] } = await state.list();
    const rows = runs.filter((run) => run.run !== state.shown).slice(0, 30);
    const choose = (id, wanted) => (state.overlay(id, wanted), listRuns());
    const list = part.compare.querySelector(".run-list");
    const focus = document.activeElement?.dataset.run;
    list.replaceChildren(...cnnDemo.runList(rows, { others: state.others, choose, show: attach }));
    if (focus) list.querySelector(`[data-run="${focus}"]`)?.focus();
  }

  part.compare.addEventListener("toggle", () => part.compare.open && listRuns());

  function drawTable(runs) {
    const key = runs.map(([id, record]) => [id, record.state, record.title, record.epochs.length].join()).join(";");
    rebuild(part.table, key, () => (runs.length > 1 ? [cnnDemo.comparisonTable(runs, props.fields)] : []));
  }

  // --- actions ---

  function actionsOf(run) {
    const change = (action) => {
      confirming = false;
      return state.change(action, run);
    };
    return {
      stop: () => change("stop"),
      resume: () => trigger("resume", { run }),
      discard: () => change("discard").then((done) => done && attach(null)),
      use: () => trigger("use", { run }),
      save: () => trigger("save", { run }),
      replay: replayed === null ? replay : endReplay,
      confirm: (now) => ((confirming = now), draw()),
    };
  }

  function replay() {
    const begun = performance.now();
    replayed = 0;
    const frame = () => {
      if (replayed === null) return;
      replayed = Math.min(1, (performance.now() - begun) / 8000);
      if (replayed === 1) return endReplay();
      draw();
      setTimeout(frame, Math.max(100, 2 * charts.cost()));
    };
    frame();
  }

  function endReplay() {
    replayed = null;
    draw();
  }

  function attach(run) {
    replayed = null;
    confirming = editing = part.log.open = false;
    for (const name of ["actions", "card", "evaluation"]) rebuild(part[name], "", () => []); // of the run before
    state.show(run);
    if (part.compare.open) listRuns();
  }

  // --- events ---

  function update() {
    const value = props.value || {};
    state.note = value.refused || value.note || "";
    if (value.refused) return draw();
    if ("shipped" in value) state.shipped = value.shipped;
    attach(value.run);
    if (value.started) box.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  watch("value", update);
  document.addEventListener("visibilitychange", () => isVisible() && state.ask());
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth === width) return;
    width = box.clientWidth; // 0 while another tab of the page is open
    if (!width) return;
    charts.redraw();
    state.ask();
  }).observe(box);
  if (props.value?.shipped !== undefined || props.value?.run) update();
};
