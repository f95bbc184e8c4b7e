"""The views of the command `explain`: what a trained network sees, and why it decided.

A view is a function `(request, ...) -> Section` whose further arguments are its options. To add one, write it in a file of
this package and add it to `views.VIEWS`.
"""
