// The list of other runs, and the table of those that are overlaid.

// A run in a line: what it is called, on what it trained if not on CIFAR-10, and how good it is.
cnnDemo.runLine = (run) => {
  const { percent } = cnnDemo;
  if (run.test_accuracy != null) return `${run.title} · ${percent(run.test_accuracy)} test`;
  const validation = run.validation_accuracy != null ? ` · ${percent(run.validation_accuracy)} validation` : "";
  return `${run.title} · ${run.state}${validation}`;
};

// rows: answers of `listing`. choose(id, wanted) overlays a run, show(id) puts it in view.
cnnDemo.runList = (rows, { others, choose, show }) => {
  const { make, button } = cnnDemo;
  if (!rows.length) {
    const advice = "There is no other run yet. Change one setting and train again to overlay the runs.";
    return [make("p", { class: "quiet" }, advice)];
  }
  return rows.map((run) => {
    const chosen = others.includes(run.run);
    const check = make("input", {
      type: "checkbox", checked: chosen, disabled: !chosen && others.length > 2, "data-run": run.run,
      onchange: (event) => choose(run.run, event.target.checked),
    });
    const warning = run.goes ? " · deleted when the next run starts: save it if you want to keep it" : "";
    const line = make("span", {}, cnnDemo.runLine(run) + warning, " ", make("code", {}, run.run));
    const label = make("label", {}, check, line);
    return make("div", {}, label, button("Show", () => show(run.run), "small"));
  });
};

// runs: [[id, record]], two or more; fields: name -> label and choices (value -> label) of a setting, as in the form.
// Shows what differs, and the results.
cnnDemo.comparisonTable = (runs, fields) => {
  const { make, row, table } = cnnDemo;
  const records = runs.map(([, record]) => record);
  const heads = records.map(({ title }, index) => [make("span", { class: `dot run-${index + 1}` }), title]);
  const value = (record, name) => {
    const chosen = record.config[name] ?? "";
    return String(fields[name]?.choices[chosen] ?? chosen);
  };
  const differs = (name) => new Set(records.map((record) => value(record, name))).size > 1;
  const settings = Object.keys(records[0].config).filter(differs).map((name) =>
    row({}, fields[name]?.label || name, records.map((record) => value(record, name))));
  if (!settings.length) settings.push(row({}, "settings", records.map(() => "the same")));
  const found = records.map(cnnDemo.results);
  const results = Object.keys(found[0]).map((title) => row({}, title, found.map((one) => one[title])));
  const shown = table({}, ["", ...heads], [...settings, ...results]);
  shown.createCaption().textContent = "Different settings, and the results";
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "comparison of runs" }, shown);
};
