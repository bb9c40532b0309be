"""Recording the passes of a fleet and drawing who was served when (`fmplex trace`).

recording.py  the file: a header, then one JSON object a pass
recorder.py   from the workers into the file
chart.py      from passes to curves and bars; pure
picture.py    OUT.png, by matplotlib
page.py       OUT.html, by plotly: to zoom into
"""
