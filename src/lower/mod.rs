//! The share below the mount: handles, xattr records, holes, leases. The only module with `unsafe`.
