"""The page `explain.html` of a workdir, which shows the sections of all views that were requested so far."""

import os

from jaxcnn.analysis.markdown import escape, to_html
from jaxcnn.explain.request import Request, Section
from jaxcnn.explain.views import ATTRIBUTION, VIEWS
from jaxcnn.files import open_replacement


def write_section(request: Request, name: str, section: Section) -> None:
    """Write the section of a view as `explain/NAME.md`, with the checkpoint that it is of, in place of an earlier one."""
    run = request.run
    checkpoint = f'Checkpoint: {run.checkpoint}, step {run.find_step(run.checkpoint)}.'
    text = '\n'.join([f'## {section.title}', '', checkpoint, '', *section.lines, ''])
    with open_replacement(os.path.join(request.folder, f'{name}.md')) as file:
        file.write(text)


def write_page(request: Request) -> str:
    """Write `explain.html`, which contains all sections and their figures, and return its path."""
    sections = []
    for name in (ATTRIBUTION, *VIEWS):
        path = os.path.join(request.folder, f'{name}.md')
        if os.path.exists(path):
            with open(path, encoding='utf-8') as file:
                sections.append(file.read())
    run = request.run
    title = f'{run.config.model.name} on {run.info["name"]}'
    text = '\n'.join([f'# {escape(title)}', '', *sections])
    page = os.path.join(run.workdir, 'explain.html')
    with open_replacement(page) as file:
        file.write(to_html(text, title, request.folder))
    return page
