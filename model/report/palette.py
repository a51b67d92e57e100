"""The colours of plots and progress bars, by Okabe and Ito: safe for colour blindness.

The service's terminal (`service/cli/chart.py`) and page (`service/playground/style.css`)
have copies; a test compares them.
"""

MAIN, OTHER, QUIET, ABSENT = "#0072B2", "#D55E00", "#767676", "#E4E4E4"
