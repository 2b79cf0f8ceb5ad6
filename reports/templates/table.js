// One table of the leaderboard. Every text is data: it becomes a text node, never markup.
const load = (id) => document.getElementById(id).textContent;
const source = URL.createObjectURL(new Blob([load("bundle")], { type: "text/javascript" }));
const { default: DataTable } = await import(source);
URL.revokeObjectURL(source);

const element = document.getElementById("table");

// DataTables' style knows dark mode by a class, the rest of the page by the media query.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();

const DEFENSE = 1;
const FLAGS = 7;

const column = (_head, place) => ({
  type: place === DEFENSE || place === FLAGS ? "string" : "num",
  // What is shown is made below; these values are for sorting, searching and filtering alone.
  render: (_data, type, row) => {
    if (type === "display") return "";
    const [shown, sorted] = row[place];
    if (place === DEFENSE || place === FLAGS) return shown;
    if (type === "sort" || type === "type") return sorted ?? Infinity;
    return sorted ?? shown;
  },
  createdCell: (node, _data, row) => {
    const [shown, , link] = row[place];
    const text = document.createElement(link ? "a" : "bdi");
    text.textContent = shown;
    if (link) text.href = link;
    node.replaceChildren(text);
  },
});

new DataTable(element, {
  data: JSON.parse(load("data")),
  columns: [...element.tHead.rows[0].cells].map(column),
  deferRender: true,
  pageLength: 50,
  lengthMenu: [25, 50, 100, 500],
  order: [[0, "asc"]],
  autoWidth: false,
  language: {
    buttons: { colvis: "Columns" },
    searchBuilder: { button: { 0: "Filter", _: "Filter (%d)" } },
  },
  layout: {
    topStart: {
      buttons: [
        "searchBuilder",
        "colvis",
      ],
    },
    topEnd: "search",
    bottomStart: ["info", "pageLength"],
    bottomEnd: "paging",
  },
});
document.documentElement.dataset.ready = "true";
