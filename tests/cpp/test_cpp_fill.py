"""The C++ host writes what is open in an answer, and chooses among a few, as Python does."""

from fill_cases import Fills


class TestCpp(Fills):
    unit = 1
