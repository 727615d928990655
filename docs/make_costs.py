"""The table "What 100,000 steps cost" of launch.md: change the prices here, and run
`python docs/make_costs.py`.
"""

PICTURES = 100_000 * 128

MACHINES = {
    # name: (machines or chips, pictures per second of one at most, US dollars per hour of one)
    "v5e-16 (16 chips)": (16, 1060 / 16, 1.20),
    "v5p-8 (4 chips)": (4, 682 / 4, 4.20),
    "v6e-16 (16 chips)": (16, 2309 / 16, 2.70),
    "8 × H100": (8, 446, 88 / 8),
}
"""Rates are those that `caphuman compile` allows; prices are assumptions: on-demand list prices of
November 2026, not looked up.
"""


def rows() -> list[str]:
    """The rows of the table."""
    found = []
    for name, (count, rate, price) in MACHINES.items():
        total = count * rate
        hours = PICTURES / total / 3600
        found.append(f"| {name} | {total:,.0f} | {hours:.1f} | {hours * count * price:.0f} |")
    return found


if __name__ == "__main__":
    print(*rows(), sep="\n")
