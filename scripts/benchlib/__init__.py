# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What scripts/bench measures, one module per thing measured.

Every figure stands next to a yardstick taken in the same run, in turns with it (A B A B),
because the machine is shared: what is compared are ratios of medians.
"""
