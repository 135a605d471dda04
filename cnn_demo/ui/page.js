// What all parts of the page share: who the visitor is, what the browser remembers, small helpers for elements.
window.cnnDemo = (() => {
  const store = (key, value) => {
    try {
      if (value === undefined) return localStorage.getItem(key) || "";
      localStorage.setItem(key, value);
    } catch {} // no storage: the visit lasts as long as the page
    return value || "";
  };
  let secret = "";

  // The visitor's secret: whoever has it may stop, continue or rename the runs started with it. It is sent to no other
  // server than the one this page is from.
  function owner() {
    secret = secret || store("cnn-demo-owner");
    if (!secret) {
      const bytes = crypto.getRandomValues(new Uint8Array(16));
      secret = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
      store("cnn-demo-owner", secret);
    }
    return secret;
  }

  const memory = () => JSON.stringify({ run: store("cnn-demo-run"), owner: owner() });

  function remember(run) {
    store("cnn-demo-run", run);
    const asked = new URLSearchParams(location.search);
    const kept = [...asked].filter(([name]) => name.startsWith("__")); // Gradio's own, such as __theme
    const query = String(new URLSearchParams(run ? [["run", run], ...kept] : kept));
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
  }

  // Gives a new element its attributes, of which those that start with "on" are listeners, and its children.
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child != null));
    return node;
  }

  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const shape = (tag, attributes = {}, ...children) => // of a drawing
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  const row = (attributes, head, cells) =>
    make("tr", attributes, make("th", { scope: "row" }, head), ...cells.map((cell) => make("td", {}, cell)));

  // heads: of the columns, each a text or nodes, "" for none; rows: as `row` returns them.
  function table(attributes, heads, rows) {
    const top = heads.map((head) => (head ? make("th", { scope: "col" }, ...[head].flat()) : make("td")));
    return make("table", attributes, make("thead", {}, make("tr", {}, ...top)), make("tbody", {}, ...rows));
  }

  // choices: value -> text. change(value) hears what is chosen.
  function radios(legend, name, choices, chosen, change) {
    const labels = Object.entries(choices).map(([value, text]) => {
      const input = { type: "radio", name, checked: value === chosen, onchange: () => change(value) };
      return make("label", {}, make("input", input), text);
    });
    return make("fieldset", {}, make("legend", {}, legend), ...labels);
  }

  function button(text, action, kind = "") {
    return make("button", { type: "button", class: `button ${kind}`, onclick: action }, text);
  }

  function copyButton(text, what) {
    const node = button(`Copy ${what}`, async () => {
      const copied = await copy(text());
      node.textContent = copied ? "Copied" : "Select and copy by hand";
      setTimeout(() => (node.textContent = `Copy ${what}`), 1500);
    });
    return node;
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = make("textarea", {}, text); // without https there is no clipboard
      document.body.append(area);
      area.select();
      const copied = document.execCommand("copy");
      area.remove();
      return copied;
    }
  }

  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  // Builds the content of a node again only when `key` differs, so that a button keeps its focus between two updates.
  function rebuild(node, key, build) {
    if (node.dataset.key === key) return;
    node.dataset.key = key;
    node.replaceChildren(...build().filter(Boolean));
  }

  // Like inference.percent: never "100 %" below 99.95 %. The space does not break.
  function percent(share) {
    if (share >= 0.9995) return "100\u00a0%";
    return share < 0.001 ? "<0.1\u00a0%" : `${Math.min(share * 100, 99.9).toFixed(1)}\u00a0%`;
  }

  const count = (number) => number.toLocaleString("en");
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

  function clock(seconds) {
    const whole = Math.round(seconds);
    const parts = [whole / 3600, (whole / 60) % 60, whole % 60].map((n) => String(Math.floor(n)).padStart(2, "0"));
    return parts.join(":").replace(/^(00:)?0?/, "");
  }

  // The command line and the link of the form, or what is wrong in the form: beside its control where that is in view.
  function showCommand(root, props, watch) {
    const box = root.querySelector(".recipe-line");
    const draw = () => {
      const { command = "", query = "", cost, error, field } = props.value || {};
      const link = location.origin + location.pathname + query;
      document.querySelectorAll("#settings .wrong").forEach((sentence) => sentence.remove());
      document.querySelectorAll("#settings [aria-invalid]").forEach((input) => input.removeAttribute("aria-invalid"));
      const control = document.getElementById(`set-${field}`);
      if (error && control?.offsetParent) {
        control.append(make("p", { class: "wrong", role: "alert" }, error));
        control.querySelector("input")?.setAttribute("aria-invalid", "true");
        return box.replaceChildren();
      }
      if (error) return box.replaceChildren(make("p", { class: "wrong", role: "alert" }, error));
      box.replaceChildren(
        make("code", { class: "command", tabindex: "0", "aria-label": "the same run from a terminal" }, command),
        copyButton(() => command, "command"),
        copyButton(() => link, "link to these settings"),
        ...(cost ? [make("p", { class: "cost" }, cost)] : []),
      );
    };
    watch("value", draw);
    draw();
    // Opening or closing the settings moves the sentence to where it can be seen.
    document.addEventListener("click", (event) => {
      if (props.value?.error && event.target.closest("#settings")) setTimeout(draw);
    });
  }

  // The example pictures of the Classify tab.
  function showExamples(root, trigger) {
    for (const example of root.querySelectorAll("button")) {
      example.addEventListener("click", () => trigger("pick", { name: example.dataset.name }));
    }
  }

  const elements = { make, shape, row, table, radios, button, copyButton, setText, rebuild };
  return { store, owner, memory, remember, ...elements, percent, count, sum, clock, showCommand, showExamples };
})();
