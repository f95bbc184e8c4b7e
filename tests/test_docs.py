"""The documentation: its links lead somewhere, its tables are complete, and the README is short."""

import dataclasses
import glob
import importlib.util
import os
import re
import unicodedata

import pytest

from jaxcnn import losses, models, schedules
from jaxcnn.data import augment, normalize, sources, tta
from jaxcnn.models.layers import ACTIVATIONS, INITIALIZERS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGES = sorted(os.path.relpath(path, ROOT) for path in [
    *glob.glob(os.path.join(ROOT, '*.md')), *glob.glob(os.path.join(ROOT, 'docs', '*.md'))])


def read(page):
    with open(os.path.join(ROOT, page), encoding='utf-8') as f:
        return f.read()


def without_code(text):
    """Return Markdown without blocks of code; code within a line stays, as headings and links may contain it."""
    return re.sub(r'^ *```.*?^ *```$', '', text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Return the anchors of the headings of a page, as MkDocs and GitHub form them."""
    headings = re.findall(r'^#+ (.*)$', without_code(read(page)), re.MULTILINE)
    plain = [unicodedata.normalize('NFKD', re.sub(r'\[(.*?)\]\(.*?\)', r'\1', heading)).lower() for heading in headings]
    return {re.sub(r'[-\s]+', '-', re.sub(r'[^\w\s-]', '', heading).strip()) for heading in plain}


def broken_links(page):
    """Return the links of a page to files of this repository that do not exist, or to headings that they do not have."""
    broken = []
    for target in re.findall(r'\]\(([^)\s]+)\)', without_code(read(page))):
        if re.match(r'[a-z]+:', target):
            continue
        file, _, anchor = target.partition('#')
        path = os.path.normpath(os.path.join(os.path.dirname(page), file)) if file else page
        if not os.path.exists(os.path.join(ROOT, path)) or (anchor and anchor not in anchors(path)):
            broken.append(target)
    return broken


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_files_and_headings(page):
    assert not broken_links(page)


def test_the_readme_is_short():
    assert len(read('README.md').splitlines()) <= 120


def test_each_page_is_in_the_navigation():
    named = set(re.findall(r': ([\w-]+\.md)$', read('mkdocs.yml'), re.MULTILINE))
    assert named == {os.path.basename(page) for page in PAGES if page.startswith('docs')}


REGISTERED = {
    'networks.md': [*models.names(), *ACTIVATIONS, *INITIALIZERS],
    'data.md': [*sources.names(), *augment.names(), *normalize.names(), *tta.names()],
    'recipes.md': [*schedules.names(), *losses.names('label'), *losses.names('labels')],
    'studies.md': [os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, 'configs', 'studies', '*.py'))],
    'configs.md': [os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, 'configs', '*.py'))],
}


@pytest.mark.parametrize('page', REGISTERED)
def test_pages_name_all_that_is_registered(page):
    text = read(os.path.join('docs', page))
    words = {*re.findall(r'\w+', text), *re.findall(r'\w+/\w+', text)}
    missing = sorted(set(REGISTERED[page]) - words)
    assert not missing


def test_the_page_of_networks_names_their_fields():
    words = set(re.findall(r'\w+', read(os.path.join('docs', 'networks.md'))))
    fields = {field.name for name in models.names() for field in dataclasses.fields(models.create(name))}
    assert fields - words == {'bn_frozen', 'bn_axis', 'quantizer', 'parent'}, 'no config sets them'


def test_the_tables_of_config_fields_are_those_of_the_schema():
    spec = importlib.util.spec_from_file_location('tables', os.path.join(ROOT, 'docs', 'write_config_tables.py'))
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = read(os.path.join('docs', 'configs.md'))
    assert page == tables.updated(page), 'make docs writes them'
