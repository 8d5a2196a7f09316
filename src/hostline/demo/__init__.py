"""See it work: two services, a file of orders, and a report that says which claims hold.

`hostline demo`, or `python -m hostline.demo`. What the services say to each other is in `model.py`, the services are
`payments.py` and `orders.py`; the rest calls, measures and disturbs them, and counts.
"""

from __future__ import annotations

__all__ = ["run"]


def run(quick: bool = False, json_output: bool = False) -> int:
    """Run the demo and return its exit code.

    Whatever happens, Ctrl-C included, every process that was started is ended and every file removed.

    Args:
        quick: Take less than half of the time: shorter measurements, and one restart.
        json_output: Print one JSON object at the end and nothing else.

    Returns:
        0 if every claim holds, 1 if one does not, 128 and the signal's number if one ended the demo.
    """
    # Not at the top: the services are started as modules of this package, and need none of it.
    from hostline.demo.tour import perform

    return perform(is_quick=quick, is_json=json_output)
