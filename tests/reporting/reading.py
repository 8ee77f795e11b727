"""A reader of pages: tables as rows of texts, what can be seen, and the outline."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "wbr", "hr"}
BLOCK = {"p", "li", "dt", "dd", "div", "h1", "h2", "h3", "td", "th", "tr", "br", "small", "section", "summary"}


class Reading(HTMLParser):
    """What a page holds, read once from its text."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.pictures, self.headings, self.links, self.ids = [], [], [], [], []
        self.open, self.text, self.opening = [], "", ""
        self._cell, self._head, self._span = None, None, ("", 0)
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in VOID:
            self.open.append((tag, given.get("id")))
        if "id" in given:
            self.ids.append(given["id"])
        if tag in ("img", "svg"):
            self.pictures.append({"tag": tag, **given})
        if "href" in given:
            self.links.append(given["href"])
        if tag == "table":
            self.tables.append({"class": given.get("class", ""), "head": [], "rows": []})
        if tag == "tr":
            self._row = []
        if tag in ("td", "th"):
            self._cell, self._rows = "", int(given.get("rowspan", 0))
        if tag in ("h1", "h2", "h3"):
            self.headings.append((int(tag[1]), ""))
        if tag in BLOCK:
            self._add(" ")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        opened, _ = self.open.pop()
        assert opened == tag, f"{opened} was closed by {tag}"
        if tag in BLOCK:
            self._add(" ")
        if tag in ("td", "th"):
            self._row.append(" ".join(self._cell.split()))
            if self._rows:
                self._span = (self._row[-1], self._rows)
            self._cell = None
        if tag == "tr":
            name, rows = self._span
            if rows:
                self._row = self._row if self._row[0] == name else [name, *self._row]
                self._span = (name, rows - 1)
            part = "head" if any(opened == "thead" for opened, _ in self.open) else "rows"
            self.tables[-1][part].append(self._row)

    def handle_data(self, data):
        if not any(tag in ("style", "title") for tag, _ in self.open):
            self._add(data)

    def _add(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data
        if any(name == "answer" for _, name in self.open):
            self.opening += data
        if any(tag in ("h1", "h2", "h3") for tag, _ in self.open):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def rows(self, kind):
        """The rows of all tables of a class."""
        return [tuple(row) for table in self.tables if kind in table["class"].split() for row in table["rows"]]
