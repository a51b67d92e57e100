"""The colours of reports, progress bars and, as copies that a test compares, of the
service's terminal (`service/cli/chart.py`) and page (`service/playground/style.css`).

Okabe and Ito's, which colour-blind readers can tell apart.
"""

MAIN, OTHER, QUIET, ABSENT = "#0072B2", "#D55E00", "#767676", "#E4E4E4"
