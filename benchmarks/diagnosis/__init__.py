"""The labelled suite: faulty and healthy training runs, made on the spot, recorded and judged."""
