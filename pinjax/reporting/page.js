"use strict";
// Draws the report from the JSON in the page, which pinjax/reporting/build.py makes. Text that comes
// from data is set as text, never as HTML; in figures, where plotly reads a little HTML, it is escaped.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const drawn = new Map(); // figures on the page, by element
  const opened = new Map(); // tabs that were opened, id -> element
  const openers = new Map(); // items with neighbours, "items/place" -> function that shows them

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function dot(colour) {
    const made = make("span", { className: "dot" });
    made.style.background = colour;
    return made;
  }

  const told = (text) => (text ? make("p", { className: "told" }, text) : null);
  const titleOf = (number) => [dot(data.runs[number].colour), data.runs[number].name];
  const colourOfTopic = (topic) =>
    topic < 0 ? "var(--line)" : `hsl(${(topic * 137.5) % 360} 55% 56%)`;
  // With leave-one-out times are ranks, and unknown ones are 0.
  const when = (time) =>
    time < 1e7 ? "" : new Date(time * 1000).toISOString().slice(0, 16).replace("T", " ");
  const nameOf = (items, place) => items.names[place] || `item ${items.ids[place]}`;
  const withPictures = () => root.dataset.pictures === "yes";

  // Light and dark.
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  function setTheme(theme) {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    for (const [element, figure] of drawn) Plotly.relayout(element, themed(figure));
  }
  button.onclick = () => setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  prefersDark.onchange = () => setTheme(prefersDark.matches ? "dark" : "light");

  const narrow = () => innerWidth < 760;

  function themed({ layout, data: traces }) {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = (own) => ({
      gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"),
      automargin: true, ...own,
    });
    return {
      height: 310 + (narrow() ? 19 : 9) * traces.length, // a legend has a line for each, or for two
      margin: { l: 48, r: 12, t: 12, b: 44 },
      dragmode: narrow() ? false : "zoom",
      ...layout,
      ...(layout.legend && narrow() ? { showlegend: false, height: 400 } : {}), // of a map
      legend: {
        orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11.5 }, ...layout.legend,
      },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
      hoverlabel: {
        bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink") },
        namelength: 40,
      },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("ink") },
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
    };
  }

  // An element for each type of block.
  const blocks = {
    text: (block) => make("div", { className: "wide" }, ...block.paragraphs.map(told)),

    notes: (block) =>
      make("section", { className: "block wide notes" }, make("h2", {}, block.title),
        make("ul", {}, ...block.lines.map((line) => make("li", {}, line)))),

    cards: (block) =>
      make("div", { className: "cards wide" }, ...block.cards.map((card) =>
        make("section", { className: "block" },
          make("h2", {}, dot(card.colour), card.title),
          card.value
            ? make("p", { className: "big" }, card.value, make("small", {}, card.interval))
            : null,
          card.label ? make("p", {}, card.label) : null,
          ...card.lines.map((line) => make("p", {}, line))))),

    figure(block) {
      const target = make("div", { className: "figure" });
      const show = (figure) => {
        drawn.set(target, figure);
        Plotly.react(target, figure.data, themed(figure), {
          responsive: true, displaylogo: false, scrollZoom: figure.layout.dragmode === "pan",
          displayModeBar: narrow() ? false : "hover",
          modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // and no upload
        });
      };
      const buttons = Object.entries(block.choices).map(([name, figure]) => {
        const choice = make("button", { type: "button" }, name);
        choice.onclick = () => {
          for (const other of buttons) other.setAttribute("aria-pressed", other === choice);
          show(figure);
        };
        return choice;
      });
      queueMicrotask(() => buttons[0].click()); // once it is on the page and has a width
      return make("section", { className: block.wide ? "block wide" : "block" },
        make("div", { className: "head" },
          make("div", {}, make("h2", {}, block.title), told(block.told)),
          buttons.length > 1 ? make("div", { className: "choice" }, ...buttons) : null),
        target);
    },

    table(block) {
      const cell = (value) =>
        typeof value === "string"
          ? make("td", {}, value)
          : make("td", { className: ["down", "", "up"][(value.sign || 0) + 1] }, value.value,
              make("small", {}, value.interval));
      const table = make("div", { className: block.folded ? "scroll folded" : "scroll" },
        make("table", {},
          make("thead", {},
            make("tr", {}, ...block.columns.map((name) => make("th", { scope: "col" }, name)))),
          make("tbody", {}, ...block.rows.map((row) => make("tr", {}, ...row.map(cell))))));
      if (block.folded) {
        return make("details", { className: "block wide" },
          make("summary", {}, block.title), told(block.told), table);
      }
      return make("section", { className: "block wide" },
        make("h2", {}, block.title), told(block.told), table);
    },

    users(block) {
      const titles = block.users.map((user) => [user.id, user.known]);
      return browser(block, titles, (number) => {
        const user = block.users[number];
        const did = new Set(user.did.map(([place]) => place));
        const latest = user.history.length < user.known ? `, the latest ${user.history.length}` : "";
        return [
          column([`History of ${user.known.toLocaleString("en")}${latest}`],
            user.history.toReversed().map(([place, kind, time]) =>
              itemRow(block.items, place, [block.kinds[kind], when(time)]))),
          ...user.recommended.map(([run, found]) =>
            column(titleOf(run), found.map(([place, score]) =>
              itemRow(block.items, place, [score.toFixed(3)], did.has(place) ? "✓ did" : "")))),
          column(["What they then did"], user.did.map(([place, time], nth) => {
            const ranks = user.ranks.filter(([, of]) => of[nth]).map(([run, of]) =>
              `${user.ranks.length > 1 ? data.runs[run].name : ""} rank ${of[nth]}`);
            return itemRow(block.items, place, [when(time)], ranks.join(", "));
          })),
        ];
      });
    },

    items(block) {
      const items = data.items[block.items];
      const titles = block.places.map((place) => [nameOf(items, place), items.counts[place]]);
      return browser(block, titles, (number) => {
        const place = block.places[number];
        const about = [
          `id ${items.ids[place]}`,
          items.topics[place] < 0 ? "" : `topic ${items.topics[place]}`,
          when(items.created[place]) && `created ${when(items.created[place])}`,
          `${items.counts[place].toLocaleString("en")} actions in training`,
        ];
        return [
          column(["Item"], [itemRow(block.items, place, about)]),
          ...block.runs.map((run, nth) =>
            column(["nearest by", ...titleOf(run)], block.neighbours[nth][number].map(
              ([other, score]) => itemRow(block.items, other, [score.toFixed(3)])))),
        ];
      }, (number, show) => openers.set(`${block.items}/${block.places[number]}`, show));
    },
  };

  function itemRow(key, place, more, badge = "") {
    const items = data.items[key];
    const url = withPictures() && items.pictures[place];
    const name = make("button", { type: "button" }, nameOf(items, place));
    const open = openers.get(`${key}/${place}`);
    name.disabled = !open;
    if (open) name.onclick = open;
    return make("li", { className: badge ? "hit" : "" },
      url
        ? make("img", { alt: "", loading: "lazy", referrerPolicy: "no-referrer", src: url })
        : dot(colourOfTopic(items.topics[place])),
      make("div", { className: "body" }, name,
        make("div", { className: "more" }, more.filter((text) => text).join(" · "),
          badge ? make("span", { className: "badge" }, badge) : null)));
  }

  function column(title, rows) {
    const list = rows.length
      ? make("ul", { className: "items" }, ...rows)
      : make("p", { className: "empty" }, "nothing");
    return make("div", {}, make("h3", {}, ...title), list);
  }

  // A list to choose from, and beside it what is chosen. `register` is called for each entry, with a
  // function that shows it.
  function browser(block, titles, columnsOf, register = () => {}) {
    const panel = make("div", { className: "columns" });
    const list = make("div", { className: "list" });
    const search = make("input", { type: "search", placeholder: "Search" });
    search.setAttribute("aria-label", "Search");
    let current = 0;
    const entries = titles.map(([title, count], number) => {
      const entry = make("button", { type: "button", title },
        make("span", {}, title), make("small", {}, count.toLocaleString("en")));
      entry.onclick = () => show(number);
      register(number, () => {
        choose("items");
        show(number);
        entry.scrollIntoView({ block: "nearest" });
      });
      return entry;
    });
    function show(number) {
      entries[current].removeAttribute("aria-current");
      current = number;
      entries[number].setAttribute("aria-current", "true");
      panel.replaceChildren(...columnsOf(number));
    }
    search.oninput = () => {
      const wanted = search.value.toLowerCase();
      entries.forEach((entry, number) => {
        entry.hidden = !titles[number][0].toLowerCase().includes(wanted);
      });
    };
    list.append(...entries);
    show(0);
    let toggle = null;
    if (data.items[block.items].pictures.some((url) => url)) {
      const box = make("input", { type: "checkbox", checked: withPictures() });
      box.onchange = () => {
        root.dataset.pictures = box.checked ? "yes" : "";
        show(current);
      };
      toggle = make("label", { className: "pictures" }, box, " pictures, from the network");
    }
    return make("section", { className: "block wide" },
      make("div", { className: "head" }, told(block.told), toggle),
      make("div", { className: "browser" }, make("div", {}, search, list), panel));
  }

  // Tabs.
  const nav = document.querySelector("nav");
  const tabs = new Map(data.tabs.map((tab) => [tab.id, tab]));

  function open(id) {
    const tab = tabs.get(id);
    const made = make("div", { className: "tab", role: "tabpanel", ariaLabel: tab.title });
    opened.set(id, made);
    document.querySelector("main").append(made);
    if (tab.blocks.length) made.append(...tab.blocks.map((block) => blocks[block.type](block)));
    else made.append(make("p", { className: "empty wide" }, tab.empty));
  }

  function choose(wanted) {
    const id = tabs.has(wanted) ? wanted : data.tabs[0].id;
    if (!opened.has(id)) open(id);
    for (const [other, element] of opened) element.hidden = other !== id;
    for (const tab of nav.children) {
      tab.setAttribute("aria-selected", tab.dataset.tab === id);
      tab.tabIndex = tab.dataset.tab === id ? 0 : -1;
    }
    const current = nav.querySelector('[aria-selected="true"]');
    nav.scrollLeft = current.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2;
    history.replaceState(null, "", `#${id}`);
    for (const element of drawn.keys()) {
      if (opened.get(id).contains(element)) Plotly.Plots.resize(element);
    }
  }

  for (const tab of data.tabs) {
    const made = make("button", { type: "button", role: "tab" }, tab.title);
    made.dataset.tab = tab.id;
    made.onclick = () => choose(tab.id);
    nav.append(made);
  }
  nav.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...nav.children];
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    next.focus();
    next.click();
  };
  onhashchange = () => choose(location.hash.slice(1));
  document.querySelector("h1").append(...data.runs.map((_, i) => make("span", {}, ...titleOf(i))));
  document.querySelector("footer").append(data.made);
  const wanted = location.hash.slice(1);
  setTheme(prefersDark.matches ? "dark" : "light");
  choose("items"); // which registers the items that others lead to
  choose(wanted);
})();
