def table(out): return ""
