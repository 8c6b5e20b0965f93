"""Tests of the attribution room."""
