"""An import contract that import-linter does not bring: a module imports the standard library and named packages only.

`forbidden` contracts list what may not be imported, so a new dependency passes until somebody lists it. This one lists
what may.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from importlinter import Contract, ContractCheck, fields, output

if TYPE_CHECKING:
    from grimp import ImportGraph


class StandardLibraryOnly(Contract):
    """Keeps `source_modules` and all below them to the standard library, `allowed` packages and the package itself."""

    type_name = "standard_library_only"

    source_modules: Any = fields.ListField(subfield=fields.StringField())
    allowed: Any = fields.ListField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at direct imports only: what the package's own modules import is their own contract's matter."""
        own = {package.split(".")[0] for package in self.source_modules}
        permitted = sys.stdlib_module_names | own | set(self.allowed or ())
        strays = [
            (importer, imported)
            for source in self.source_modules
            if source in graph.modules
            for importer in sorted({source, *graph.find_descendants(source)})
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if imported.split(".")[0] not in permitted
        ]
        return ContractCheck(kept=not strays, metadata={"strays": strays})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name every stray import."""
        for importer, imported in check.metadata["strays"]:
            output.print_error(f"{importer} is not allowed to import {imported}", bold=False)
