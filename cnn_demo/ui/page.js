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

  // The visitor's secret: whoever has it may stop or continue the runs started with it. It never leaves this browser
  // but to the server of this page.
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
    history.replaceState(null, "", run ? `?run=${encodeURIComponent(run)}` : location.pathname);
  }

  // An element; attributes that start with "on" are listeners.
  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child != null));
    return node;
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

  // Like inference.percent: never "100 %" below 99.95 %.
  const percent = (share) => (share >= 0.9995 ? "100 %" : share < 0.001 ? "<0.1 %" : `${Math.min(share * 100, 99.9).toFixed(1)} %`);

  const clock = (seconds) => {
    const whole = Math.round(seconds);
    const hours = Math.floor(whole / 3600);
    const rest = [Math.floor(whole / 60) % 60, whole % 60].map((n, i) => (i || hours ? String(n).padStart(2, "0") : n));
    return [...(hours ? [hours] : []), ...rest].join(":");
  };

  // The command line and the link of the form.
  function showCommand(root, props, watch) {
    const box = root.querySelector(".recipe-line");
    const draw = () => {
      const { command = "", query = "", cost, error, field } = props.value || {};
      const link = location.origin + location.pathname + query;
      document.querySelectorAll("#recipe .wrong").forEach((told) => told.remove());
      if (error) {
        document.getElementById(`set-${field}`)?.append(make("p", { class: "wrong" }, error));
        return box.replaceChildren(make("p", { class: "wrong", role: "alert" }, error));
      }
      box.replaceChildren(
        ...(cost ? [make("p", { class: "cost" }, cost)] : []),
        make("p", {}, "The same run from a terminal:"),
        make("code", { class: "command", tabindex: "0" }, command),
        make("div", { class: "actions" }, copyButton(() => command, "command"), copyButton(() => link, "link to this recipe")),
      );
    };
    watch("value", draw);
    draw();
  }

  return { owner, memory, remember, make, button, copyButton, percent, clock, showCommand };
})();
