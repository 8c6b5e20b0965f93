"""The area map against a page-by-page model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trapline.process.areas import PAGE, Area, AreaMap, MappedFile

FILE = MappedFile("/lib/x.so", 1, 2)
PAGES = 24

spans = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), spans, st.integers(0, 7), st.booleans()),
        st.tuples(st.just("remove"), spans, st.just(0), st.just(False)),
        st.tuples(st.just("protect"), spans, st.integers(0, 7), st.just(False)),
    ),
    max_size=30,
)


@given(steps)
def test_every_page_is_as_the_last_change_left_it(
    script: list[tuple[str, tuple[int, int], int, bool]],
) -> None:
    areas = AreaMap()
    model: dict[int, tuple[int, int | None]] = {}  # page -> (prot, file offset)
    for what, (first, count), prot, of_file in script:
        pages = range(first, first + count)
        start, end = first * PAGE, (first + count) * PAGE
        if what == "add":
            offset = 0x10000
            areas.add(Area(start, end, prot, file=FILE if of_file else None, offset=offset))
            for page in pages:
                place = offset + (page - first) * PAGE if of_file else None
                model[page] = (prot, place)
        elif what == "remove":
            areas.remove(start, end)
            for page in pages:
                model.pop(page, None)
        else:
            areas.protect(start, end, prot)
            for page in pages:
                if page in model:
                    model[page] = (prot, model[page][1])
        areas.check()
    for page in range(PAGES + 8):
        area = areas.find(page * PAGE + 5)
        if page not in model:
            assert area is None
        else:
            assert area is not None
            place = area.offset + page * PAGE - area.start if area.file else None
            assert (area.prot, place) == model[page]
    gaps = {
        page for a, b in areas.gaps(0, (PAGES + 8) * PAGE) for page in range(a // PAGE, b // PAGE)
    }
    assert gaps == set(range(PAGES + 8)) - set(model)


def test_adjacent_parts_of_one_mapping_are_one_area_again() -> None:
    areas = AreaMap()
    areas.add(Area(0, 4 * PAGE, 3, file=FILE, offset=0x2000))
    areas.protect(PAGE, 2 * PAGE, 1)
    assert len(areas) == 3
    areas.protect(PAGE, 2 * PAGE, 3)
    assert list(areas) == [Area(0, 4 * PAGE, 3, file=FILE, offset=0x2000)]


def test_different_files_side_by_side_stay_apart() -> None:
    areas = AreaMap()
    areas.add(Area(0, PAGE, 1, file=FILE))
    areas.add(Area(PAGE, 2 * PAGE, 1, file=MappedFile("/lib/y.so", 1, 3), offset=PAGE))
    assert len(areas) == 2


def test_the_highest_gap_is_found() -> None:
    areas = AreaMap()
    areas.add(Area(8 * PAGE, 9 * PAGE, 1))
    assert areas.find_gap(2 * PAGE, 0, 10 * PAGE) == 6 * PAGE
    assert areas.find_gap(PAGE, 0, 10 * PAGE) == 9 * PAGE
    assert areas.find_gap(9 * PAGE, 0, 10 * PAGE) is None
