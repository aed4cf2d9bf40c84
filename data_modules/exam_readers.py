"""Rows of text exams -> `Record`: one function per published format; the contract is that of `data_modules.readers`."""

from __future__ import annotations
