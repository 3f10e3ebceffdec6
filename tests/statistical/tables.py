def page(r, n):
    return ""
