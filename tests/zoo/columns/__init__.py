"""Columns of the tables: what is measured of each network, by technique."""
