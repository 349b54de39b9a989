"""chameleon: compiles a template and renders an HTML table with it.

Source: FunctionBench, `cpu-memory/chameleon`.
"""

from zlib import crc32

from chameleon import PageTemplate

from vhive_function import at_most, serve

TEMPLATE = """\
<table xmlns="http://www.w3.org/1999/xhtml" xmlns:tal="http://xml.zope.org/namespaces/tal">
<caption tal:content="caption"></caption>
<tr tal:repeat="row table">
<td tal:repeat="(name, value) row.items()"><b tal:content="name"></b><i tal:content="value"></i></td>
</tr>
</table>"""
MAX_ROWS = 10_000
MAX_COLUMNS = 100
HELP = 'POST / with {"caption":"text","rows":100,"columns":10} replies with length and CRC-32 of the page'


def handle(request):
    fields = request.json({"caption": "", "rows": 100, "columns": 10})
    rows = at_most("rows", fields["rows"], 1, MAX_ROWS)
    columns = at_most("columns", fields["columns"], 1, MAX_COLUMNS)
    table = [{f"c{column}": row * column for column in range(columns)} for row in range(rows)]
    page = PageTemplate(TEMPLATE).render(caption=fields["caption"], table=table)
    page = page.encode("utf-8", "backslashreplace")
    return {"cells": rows * columns, "bytes": len(page), "crc32": f"{crc32(page):08x}"}


serve("chameleon", handle, HELP)
