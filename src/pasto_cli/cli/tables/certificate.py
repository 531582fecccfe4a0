"""What a certificate says, on stdout."""

from rich.table import Table

from pasto_cli.base.format import format_estimate
from pasto_cli.cli.console import out, print_line
from pasto_cli.core.records.adapter import Certificate


def show_certificate(certificate: Certificate) -> None:
    """The verdict with n, and strength at both ends beside the persona prompts'."""
    print_line(
        f"Certificate {'passed' if certificate.passed else 'FAILED'}: "
        f"{certificate.num_suffixes} held-out openings under "
        f"{certificate.num_neutral_prompts} held-out neutral prompts, "
        f"n = {certificate.strength['1'].n}"
    )
    table = Table()
    table.add_column("")
    table.add_column("strength in prompt-equivalents [95 %]", justify="right")
    table.add_row("coefficient +1", format_estimate(certificate.strength["1"]))
    table.add_row("coefficient -1", format_estimate(certificate.strength["-1"]))
    table.add_row("positive persona prompt", f"{certificate.persona_prompts['chosen']:+.2f}")
    table.add_row("negative persona prompt", f"{certificate.persona_prompts['rejected']:+.2f}")
    out.print(table)
