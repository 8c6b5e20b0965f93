"""What tells the guest's operating system which processors and controllers there are: names
only."""

from trapline.machine.acpi.tables import write_tables

__all__ = ["write_tables"]
