//! The workspace's crates and what their source files name, read by syn and without what is compiled only for tests.

use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{MetadataCommand, Package};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A source file.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The modules that it declares, each as a path from the file's own module.
    pub(crate) modules: Vec<Vec<String>>,
    /// The paths that it names.
    pub(crate) paths: Vec<NamedPath>,
}

/// A path that a source file names; a `use` tree is as many as it has leaves.
#[derive(Debug)]
pub(crate) struct NamedPath {
    /// The names of which it consists, the last of a glob left out.
    pub(crate) path: Vec<String>,
    /// The line on which it ends, from 1.
    pub(crate) line: usize,
    /// The modules of this file around it, outermost first.
    pub(crate) inside: Vec<String>,
    /// What it imports, if it is in a `use`.
    pub(crate) import: Option<Import>,
}

/// What a path in a `use` makes known where it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Import {
    /// Its item, by this name.
    Name(String),
    /// All of its module.
    Glob,
}

/// The workspace's directory.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's directory").to_owned()
}

/// The crates of the workspace.
pub(crate) fn packages() -> Vec<Package> {
    MetadataCommand::new().current_dir(root()).no_deps().exec().expect("cargo metadata").packages
}

impl Source {
    /// Reads a file.
    pub(crate) fn read(file: &Path) -> Source {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Source::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    }

    /// Reads a file whose text is `text`.
    pub(crate) fn parse(text: &str) -> syn::Result<Source> {
        let mut reader = Reader::default();
        reader.visit_file(&syn::parse_file(text)?);
        Ok(reader.source)
    }
}

#[derive(Default)]
struct Reader {
    source: Source,
    inside: Vec<String>,
}

impl Reader {
    fn push(&mut self, path: Vec<String>, span: Span, import: Option<Import>) {
        let named = NamedPath { path, line: span.end().line, inside: self.inside.clone(), import };
        self.source.paths.push(named);
    }

    fn tree(&mut self, tree: &syn::UseTree, prefix: &[String]) {
        let joined = |ident: &syn::Ident| [prefix, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&path.tree, &joined(&path.ident)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, prefix)),
            // `use a::{self}` makes `a` known.
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.push(prefix.to_vec(), name.span(), prefix.last().map(known_as))
            }
            syn::UseTree::Name(name) => {
                self.push(joined(&name.ident), name.span(), Some(known_as(&name.ident)))
            }
            syn::UseTree::Rename(name) => {
                self.push(joined(&name.ident), name.span(), Some(known_as(&name.rename)))
            }
            syn::UseTree::Glob(glob) => self.push(prefix.to_vec(), glob.span(), Some(Import::Glob)),
        }
    }

    /// The paths in a macro's tokens, whose grammar is the macro's own.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path = Vec::new();
        let mut colons = 0;
        let mut span = Span::call_site();
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.push_tokens(&mut path, span);
                    }
                    path.push(ident.to_string());
                    span = ident.span();
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    self.push_tokens(&mut path, span);
                    self.tokens(group.stream());
                }
                _ => self.push_tokens(&mut path, span),
            }
        }
        self.push_tokens(&mut path, span);
    }

    fn push_tokens(&mut self, path: &mut Vec<String>, span: Span) {
        if !path.is_empty() {
            self.push(std::mem::take(path), span, None);
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !for_tests(&item.attrs) {
            self.tree(&item.tree, &[]);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !for_tests(&item.attrs) {
            self.inside.push(item.ident.to_string());
            self.source.modules.push(self.inside.clone());
            visit::visit_item_mod(self, item);
            self.inside.pop();
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !for_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !for_tests(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.push(names, path.span(), None);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }
}

fn known_as(name: impl ToString) -> Import {
    Import::Name(name.to_string())
}

/// Whether an item is compiled only for tests or fuzz targets.
fn for_tests(attributes: &[syn::Attribute]) -> bool {
    let mut conditions = attributes.iter().filter(|a| a.path().is_ident("cfg"));
    conditions.any(|a| a.parse_args::<syn::Meta>().is_ok_and(|condition| needs_test(&condition)))
}

/// Whether a condition of `cfg` holds only where `test` or `fuzzing` does.
fn needs_test(condition: &syn::Meta) -> bool {
    let path = condition.path();
    let parts = condition.require_list().ok().and_then(|list| {
        let parse = syn::punctuated::Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated;
        list.parse_args_with(parse).ok()
    });
    match parts {
        Some(parts) if path.is_ident("all") => parts.iter().any(needs_test),
        Some(parts) if path.is_ident("any") => parts.iter().all(needs_test),
        _ => path.is_ident("test") || path.is_ident("fuzzing"),
    }
}
