"""`rlco doctor`: go or no-go for this machine."""

from rlco_trainer.commands.base import command, contract_option


def add(commands) -> None:
    def run(options):
        from rlco_trainer.doctor import diagnose, render

        findings = diagnose(options.contract)
        print(render(findings))
        return int(any(finding.go is False for finding in findings))

    contract_option(command(commands, "doctor", run, "say go or no-go for this machine, with cause and remedy"))
