"""Tests of specifications: exact numbers, exact evaluation, queries built in code."""
