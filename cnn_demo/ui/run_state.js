// What the page knows of runs, and how it learns more. It decides nothing: states, texts and curves are what the
// server's last answers say.
cnnDemo.ACTIVE = ["queued", "preparing", "training", "validating", "testing", "stopping"];
cnnDemo.CAN_CONTINUE = ["stopped", "failed", "interrupted"];
cnnDemo.hasEnded = (record) => Boolean(record.state) && !cnnDemo.ACTIVE.includes(record.state);

// A run as far as the page knows it. points, validations and epochs are objects with the names that the server gave
// in `columns`.
cnnDemo.newRecord = () => ({ seq: -1, points: [], validations: [], epochs: [], log: [] });

// Takes an answer of `watch` into a record. A `reset` replaces what was drawn: the run went back to a checkpoint.
cnnDemo.mergeAnswer = (record, answer) => {
  const MOST_POINTS = 320; // of a curve in memory; six values of each are drawn
  const MOST_VALIDATIONS = 200;
  const { points, validations, epochs, log, ...state } = answer;
  if (answer.reset) Object.assign(record, cnnDemo.newRecord(), { columns: answer.columns });
  const named = (rows, columns) =>
    rows.map((row) => Object.fromEntries(columns.map((column, index) => [column, row[index]])));
  record.points.push(...named(points, record.columns.points));
  while (record.points.length > MOST_POINTS) record.points = cnnDemo.halvePoints(record.points);
  record.validations.push(...named(validations, record.columns.validations));
  while (record.validations.length > MOST_VALIDATIONS) {
    record.validations = record.validations.filter((_, i, { length }) => (length - i) % 2); // the last stays
  }
  for (const epoch of named(epochs, record.columns.epochs)) {
    record.epochs = [...record.epochs.filter((known) => known.step < epoch.step), epoch];
  }
  record.log.push(...log);
  Object.assign(record, state, { end: answer.end || null, error: "" });
};

// Two neighbours become one, with their means, weighted by steps, and both extremes.
cnnDemo.halvePoints = (points) => points.flatMap((first, i) => {
  const second = points[i + 1];
  if (i % 2) return [];
  if (!second) return first;
  const before = i ? points[i - 1].step : 0;
  const weight = (first.step - before) / (second.step - before);
  const mean = (name) => first[name] * weight + second[name] * (1 - weight);
  return {
    ...second,
    loss: mean("loss"),
    accuracy: first.accuracy == null ? second.accuracy : mean("accuracy"),
    loss_low: Math.min(first.loss_low, second.loss_low),
    loss_high: Math.max(first.loss_high, second.loss_high),
  };
});

cnnDemo.bestEpoch = (record) => record.epochs.filter((epoch) => epoch.best).at(-1);

// server: the functions of run_view.py. isVisible() tells whether anybody looks; drawingCost() how many milliseconds
// the last drawing took. onChange() draws; onBusy(active) hears whether the visitor has an active run.
cnnDemo.runState = ({ server, isVisible, drawingCost, onChange, onBusy }) => {
  const SLOW = location.hostname.endsWith(".hf.space"); // where many visitors ask through one proxy
  const NO_ANSWER = "The server did not answer; try again.";
  const records = new Map(); // run id -> record
  const state = {
    records,
    shown: "", // the id of the run in view
    shipped: null, // the id of the example
    others: [], // ids of the runs that are overlaid
    note: "", // what went wrong, in a sentence
    failures: 0, // calls in a row without an answer
  };
  let timer = 0;
  let busy = null;
  let asking = false;
  let again = false; // something happened while asking

  // Gradio's client returns nothing where the server could not be reached, or failed.
  async function call(name, asked) {
    const answer = await server[name]({ ...asked, owner: cnnDemo.owner() });
    if (!answer) throw new Error("no answer");
    return answer;
  }

  const shownIds = () => [state.shown, ...state.others];

  async function update(id) {
    const record = records.get(id);
    if (!record || record.settled) return;
    const answer = await call("watch", { run: id, after: record.seq });
    if (answer.error) {
      record.error = answer.error;
      if (id === state.shown) setBusy((await call("listing", {})).active);
    } else {
      cnnDemo.mergeAnswer(record, answer);
      if (id === state.shown) setBusy(answer.active);
    }
    record.settled = !again && Boolean(answer.error || cnnDemo.hasEnded(record));
  }

  async function ask() {
    clearTimeout(timer);
    if (asking) return void (again = true);
    if (!state.shown || !isVisible()) return;
    asking = true;
    again = false;
    try {
      for (const id of shownIds()) await update(id);
      state.failures = 0;
    } catch {
      state.failures += 1;
    }
    asking = false;
    onChange();
    if (again) ask();
    else if (shownIds().some((id) => !records.get(id)?.settled)) timer = setTimeout(ask, pause());
    // someone may continue it elsewhere
    else if (busy || cnnDemo.CAN_CONTINUE.includes(records.get(state.shown)?.state)) timer = setTimeout(recheck, 10000);
  }

  // Drawing takes at most a fiftieth of a core: on a small machine the training may run on the very same one.
  function pause() {
    const retry = state.failures ? 1000 * 2 ** Math.min(state.failures, 4) : 0;
    const changesSoon = ["preparing", "stopping"].includes(records.get(state.shown)?.state); // nothing is drawn
    if (changesSoon && !SLOW) return Math.max(300, retry);
    return Math.max(SLOW ? 2500 : 1000, Math.min(50 * drawingCost(), 4000), retry);
  }

  function recheck() {
    const record = records.get(state.shown);
    if (record) record.settled = false;
    return ask();
  }

  function setBusy(active) {
    if (busy === Boolean(active)) return;
    busy = Boolean(active);
    onBusy(busy);
  }

  function know(id) {
    if (id && !records.has(id)) records.set(id, cnnDemo.newRecord());
  }

  function show(run) {
    state.shown = run || state.shipped || "";
    state.others = state.others.filter((id) => id !== state.shown);
    if (run) cnnDemo.remember(run);
    know(state.shown);
    if (state.shown) recheck();
    else {
      onChange();
      list().then((answer) => setBusy(answer.active));
    }
  }

  function overlay(id, wanted) {
    state.others = wanted ? [...state.others, id].slice(-3) : state.others.filter((other) => other !== id);
    know(id);
    return recheck();
  }

  // Stops, continues, discards or renames a run. Returns whether the server did it; if not, `note` says why.
  async function change(action, run, title = "") {
    const answer = await call("change", { action, run, title }).catch(() => ({ error: NO_ANSWER }));
    state.note = answer.error || "";
    if (action === "discard" && !answer.error) {
      records.delete(run);
      cnnDemo.remember("");
    } else recheck();
    return !answer.error;
  }

  const list = () => call("listing", {}).catch(() => ({ runs: [] }));
  const evaluation = (run) => call("evaluation", { run }).catch(() => ({ error: NO_ANSWER }));

  return Object.assign(state, { ask, recheck, show, overlay, change, list, evaluation });
};
