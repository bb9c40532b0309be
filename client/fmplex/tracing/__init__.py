"""Who was served when: recording the passes of a fleet and drawing them (`fmplex trace`).

recording.py  the file: a header, then one JSON object a pass
listening.py  from the workers into the file
chart.py      from passes to curves and boxes; pure
picture.py    OUT.png, by matplotlib
page.py       OUT.html, by plotly: to zoom into
"""
