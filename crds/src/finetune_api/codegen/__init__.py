"""Files generated from the models: CRD, admission policy, key table, editor schema, reference pages."""
